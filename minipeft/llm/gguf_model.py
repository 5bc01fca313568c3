"""A model of the Llama family from a GGUF file: its sizes, its weights, its tokenizer.

    model, tokenizer = load(GGUF(path))

What such a file says and GPT, or its tokenizer, does not compute is refused by its key. The keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what they mean where that is silent
(which pattern cuts texts, where a token is put in front): llama.cpp's llama-vocab.cpp.
"""
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..adapter_file import check_shapes
from ..files import KINDS, plain, replacing, short, write_json
from ..gpt import PROJECTIONS, GPT, GPTConfig, RopeScaling
from .gguf import GGUF
from .hf_config import entries_of

try:
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                            pre_tokenizers, processors)
except ImportError:             # said by read_tokenizer: the planner needs none
    Tokenizer = None

ANOTHER = "take another file"

# What llama.cpp calls an architecture, and GPTConfig's fields that it has beside Llama's
ARCHITECTURES = {"llama": {}, "qwen2": {"biases": PROJECTIONS[:3]}, "qwen3": {"qk_norm": True}}
# llama.cpp's names of a layer's tensors, and HuggingFace's
LAYER = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm"}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

ROPE_FREQS = "rope_freqs.weight"    # how much slower each pair turns, (D / 2,): Llama 3.1's
# GPTConfig's names and llama.cpp's
SIZES = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
         "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
         "max_position_embeddings": "context_length"}
OTHERS = {"vocab_size": ("vocab_size", int), "rope_theta": ("rope.freq_base", float),
          "num_key_value_heads": ("attention.head_count_kv", int),
          "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float),
          "head_dim": ("attention.key_length", int)}
ROPE = "rope.scaling.type", "rope.scaling.factor"

# How a text is cut into words before pairs are merged, by llama.cpp's name of it
LLAMA_3, WORDS = "llama-bpe", ("gpt-2", "smollm", "llama-bpe", "qwen2")
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+"
           r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TOKENIZER = ("model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id",
             "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id",
             "padding_token_id", "seperator_token_id", "mask_token_id", "cls_token_id",
             "add_bos_token", "add_space_prefix")
NOTHING_ELSE_ADDED = {"add_eos_token": False, "add_sep_token": False,
                      "remove_extra_whitespaces": False}
TOKEN_TYPES = NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE, LONGEST_PIECE = "\u2581", 256      # a piece of a sentence has a space as U+2581


def unpermute(weight: Tensor, n_heads: int) -> Tensor:
    """The rows of q or k in HuggingFace's order; weight (H D, C).

    llama.cpp turns neighbouring rows (2 i, 2 i + 1) of a head as a pair, HuggingFace and `rotate`
    rows (i, i + D / 2), so the converter has interleaved each head's two halves.
    """
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def entry(gguf: GGUF, key: str, kind: type):
    """A value of the metadata; ValueError if it is missing or of another kind."""
    value = gguf.metadata.get(key)
    if type(value) is not kind:
        raise ValueError(f"{gguf.path}: {key} must be {KINDS.get(kind, 'an array of numbers')}, "
                         f"got {short(value)}; {ANOTHER}")
    return value


@contextmanager
def about(gguf: GGUF) -> Iterator[None]:
    """A ValueError raised inside names the file, and says what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{gguf.path}: {error}; {ANOTHER}") from None


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
    kind = gguf.metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:          # an array has no truth
        raise ValueError(f"{gguf.path} must hold a model of the architecture "
                         f"{' or '.join(map(repr, ARCHITECTURES))}, got {short(kind)}; {ANOTHER}")
    sizes = {name: entry(gguf, f"{kind}.{key}", int) for name, key in SIZES.items()}
    if sizes["num_hidden_layers"] > len(gguf.tensors):      # before as many layers are built
        raise ValueError(f"{gguf.path} announces {sizes['num_hidden_layers']} layers and holds "
                         f"{len(gguf.tensors)} tensors; {ANOTHER}")
    others = {name: entry(gguf, f"{kind}.{key}", type_) for name, (key, type_) in OTHERS.items()
              if f"{kind}.{key}" in gguf.metadata}
    others["rms_norm_eps"] = float(str(np.float32(others.get("rms_norm_eps", 1e-5))))
    if "vocab_size" not in others:
        others["vocab_size"] = len(entry(gguf, "tokenizer.ggml.tokens", list))
    with about(gguf):
        config = GPTConfig(**sizes, **others, **ARCHITECTURES[kind],
                           tie_word_embeddings="output.weight" not in gguf.tensors)
    D = config.head_dim
    check_known(gguf, f"{kind}.", [*SIZES.values(), *(key for key, _ in OTHERS.values()), *ROPE],
                {"rope.dimension_count": D, "attention.value_length": D, "expert_count": 0,
                 "expert_used_count": 0})
    return replace(config, rope_scaling=rope_scaling(gguf, kind, config))


def rope_scaling(gguf: GGUF, kind: str, config: GPTConfig) -> RopeScaling | None:
    """From the metadata, or from the tensor ROPE_FREQS, whose numbers must be Llama 3.1's."""
    said, factor = (gguf.metadata.get(f"{kind}.{key}") for key in ROPE)
    half, found = config.head_dim // 2, None
    with about(gguf):
        if said is not None and said != "none":
            found = RopeScaling(said, factor)
            if found.rope_type != "linear" or ROPE_FREQS in gguf.tensors:
                raise ValueError(f"{kind}.{ROPE[0]} must be none, or linear without the tensor "
                                 f"{ROPE_FREQS}, got {short(said)}")
    if ROPE_FREQS not in gguf.tensors:
        return found
    with about(gguf):
        if gguf.tensors[ROPE_FREQS][0] != (half,):
            raise ValueError(f"the tensor {ROPE_FREQS} must have shape ({half},), got "
                             f"{gguf.tensors[ROPE_FREQS][0]}")
    slower = gguf.tensor(ROPE_FREQS)
    with about(gguf):
        found = RopeScaling("llama3", slower.max().item())
        frequency = 1 / config.rope_theta ** (torch.arange(half) / half)
        # to what float32 gives the two divisions and the power
        if not torch.allclose(frequency / found.slowed(frequency), slower, rtol=1e-5):
            raise ValueError(f"the tensor {ROPE_FREQS} is not the scaling of Llama 3.1 "
                             f"(low_freq_factor 1, high_freq_factor 4, of 8192 tokens)")
    return found


def hf_name(gguf: GGUF, name: str, biases: Iterable[str]) -> str:
    """HuggingFace's name of a tensor; ValueError for one that no GPT has."""
    match = re.fullmatch(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?(\w+)\.(weight|bias)", name)
    layer, part, end = match.groups() if match else (None, None, None)
    known = LAYER if layer else TOP
    if part not in known or (end == "bias" and known[part].split(".")[-1] not in biases):
        raise ValueError(f"{gguf.path}: the tensor {plain(name)} belongs to another model than "
                         f"GPT computes; {ANOTHER}")
    return f"model.layers.{layer}.{known[part]}.{end}" if layer else f"{known[part]}.{end}"


def read_weights(gguf: GGUF, model: GPT, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under HuggingFace's name, one at a time, the rows of q and k in HuggingFace's
    order.

    ValueError, before any is unpacked, unless names and shapes are those of `model`.
    """
    config, wanted = model.config, model.state_dict()
    names = {hf_name(gguf, name, config.biases): name for name in gguf.tensors
             if name != ROPE_FREQS}
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    found = {ours: torch.empty(gguf.tensors[name][0], device="meta")
             for ours, name in names.items()}
    check_shapes(wanted, found, gguf.path)
    turned = gguf.metadata["general.architecture"] == "llama"        # Qwen's are as HuggingFace's
    for ours, name in names.items():
        weight = gguf.tensor(name).to(dtype)
        if turned and ours.endswith(("q_proj.weight", "k_proj.weight")):
            n_heads = config.num_attention_heads if "q_proj" in ours else config.kv_heads
            weight = unpermute(weight, n_heads)
        yield ours, weight


def read_tokenizer(gguf: GGUF) -> "Tokenizer":
    """Pairs of bytes ("gpt2", as GPT-2, Llama 3 and Qwen2) or pieces of sentences ("llama", as
    Llama 1 and 2), and in front of a text the token that the file wants there, if any.

    ValueError for a tokenizer of another kind.
    """
    if Tokenizer is None:
        raise ImportError("a language model needs the package tokenizers; install it with: "
                          "pip install tokenizers")
    check_known(gguf, "tokenizer.ggml.", TOKENIZER, NOTHING_ELSE_ADDED)
    kind = entry(gguf, "tokenizer.ggml.model", str)
    if kind not in READERS:
        raise ValueError(f"{gguf.path}: tokenizer.ggml.model must be {' or '.join(READERS)}, got "
                         f"{short(kind)}; {ANOTHER}")
    ids, kinds = read_words(gguf)
    tokenizer = READERS[kind](gguf, ids, kinds)
    added = [AddedToken(word, special=kind in (CONTROL, UNKNOWN), normalized=False)
             for word, kind in zip(ids, kinds) if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    begins = kind == "llama" or gguf.metadata["tokenizer.ggml.pre"] == LLAMA_3
    if said(gguf, "add_bos_token", begins):
        bos = entry(gguf, "tokenizer.ggml.bos_token_id", int)
        if not 0 <= bos < len(kinds) or kinds[bos] != CONTROL:
            raise ValueError(f"{gguf.path}: tokenizer.ggml.bos_token_id must be the id of a "
                             f"control token, got {bos}; {ANOTHER}")
        first = {"id": "bos", "ids": [bos], "tokens": [list(ids)[bos]]}
        tokenizer.post_processor = processors.TemplateProcessing("bos $A", None, [first])
    return tokenizer


def said(gguf: GGUF, name: str, default: bool) -> bool:
    """What the file says about its tokenizer, or llama.cpp's default."""
    key = f"tokenizer.ggml.{name}"
    return entry(gguf, key, bool) if key in gguf.metadata else default


def read_words(gguf: GGUF) -> tuple[dict[str, int], np.ndarray]:
    """(id by word, type of each); ValueError unless words differ and every type is known."""
    words = entry(gguf, "tokenizer.ggml.tokens", list)
    kinds = entry(gguf, "tokenizer.ggml.token_type", np.ndarray)
    ids = {word: i for i, word in enumerate(words)}
    if not len(ids) == len(words) == len(kinds) or set(kinds.tolist()) - set(TOKEN_TYPES):
        raise ValueError(f"{gguf.path}: tokenizer.ggml.tokens must differ, each with a token_type "
                         f"of {', '.join(map(str, TOKEN_TYPES))}; {ANOTHER}")
    return ids, kinds


def cut_into_words(name: str) -> "pre_tokenizers.PreTokenizer":
    """GPT-2's pattern, SmolLM's with every digit alone, or Llama 3's, whose numbers have three
    digits at most and Qwen2's one."""
    if name in ("gpt-2", "smollm"):
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)              # GPT-2's
        digits = pre_tokenizers.Digits(individual_digits=True)
        return words if name == "gpt-2" else pre_tokenizers.Sequence([digits, words])
    pattern = Regex(PATTERN.replace("DIGITS", "{1,3}" if name == LLAMA_3 else ""))
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_pairs(gguf: GGUF, ids: dict[str, int], kinds: np.ndarray) -> "Tokenizer":
    """Byte-level BPE with the merges in the file.    Sennrich et al. 2016, Radford et al. 2019"""
    name = entry(gguf, "tokenizer.ggml.pre", str)
    if name not in WORDS:
        raise ValueError(f"{gguf.path}: tokenizer.ggml.pre must be one of {', '.join(WORDS)}, got "
                         f"{short(name)}, which cuts texts into other words; {ANOTHER}")
    if said(gguf, "add_space_prefix", False) or BYTE in kinds:
        raise ValueError(f"{gguf.path}: byte pairs are implemented here with add_space_prefix "
                         f"False and without tokens of the type {BYTE}, got others; {ANOTHER}")
    merges = [tuple(pair.split(" ")) for pair in entry(gguf, "tokenizer.ggml.merges", list)]
    for pair in merges:
        if len(pair) != 2 or not ids.keys() >= {*pair, "".join(pair)}:
            raise ValueError(f"{gguf.path}: a merge must be two tokens whose union is one, got "
                             f"{short(' '.join(pair))}; {ANOTHER}")
    # Llama 3 takes a word that is a token as it is
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=name == LLAMA_3))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut_into_words(name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_pieces(gguf: GGUF, ids: dict[str, int], kinds: np.ndarray) -> "Tokenizer":
    """SentencePiece's BPE: of all neighbours whose union is a piece, those with the highest score
    are merged first; a character that is no piece is its bytes.    Kudo and Richardson 2018"""
    scores = entry(gguf, "tokenizer.ggml.scores", np.ndarray)
    if len(scores) != len(ids) or not np.isfinite(scores).all():
        raise ValueError(f"{gguf.path}: tokenizer.ggml.scores must be a finite number for each of "
                         f"{len(ids)} tokens, got {short(scores)}; {ANOTHER}")
    missing = {f"<0x{b:02X}>" for b in range(256)} - {w for w, i in ids.items() if kinds[i] == BYTE}
    if missing:
        raise ValueError(f"{gguf.path}: tokenizer.ggml.tokens must have a token of the type {BYTE} "
                         f"for every byte, and {min(missing)} is missing; {ANOTHER}")
    tokenizer = Tokenizer(models.BPE(ids, merges_by_score(gguf, ids, kinds, scores),
                                     byte_fallback=True))
    before = said(gguf, "add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE)] * before + [normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * before)
    return tokenizer


def merges_by_score(gguf: GGUF, ids: dict[str, int], kinds: np.ndarray,
                    scores: np.ndarray) -> list[tuple[str, str]]:
    """Every cut of a piece into two others, the pieces from the highest score to the lowest."""
    pieces = [word for word, i in ids.items() if kinds[i] in (NORMAL, USER_DEFINED)]
    longest = max(map(len, pieces), default=0)
    if longest > LONGEST_PIECE:              # the cuts below take its square
        raise ValueError(f"{gguf.path}: a token of tokenizer.ggml.tokens must have at most "
                         f"{LONGEST_PIECE} characters, got {longest}; {ANOTHER}")
    cuts = [(piece[:i], piece[i:]) for piece in sorted(pieces, key=lambda word: -scores[ids[word]])
            for i in range(1, len(piece))]
    return [(left, right) for left, right in cuts if left in ids and right in ids]


READERS = {"gpt2": byte_pairs, "llama": sentence_pieces}


def token_id(gguf: GGUF, name: str) -> int | None:
    """The id that the file gives to a kind of token, None if it gives none; ValueError for one that
    is beyond the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in gguf.metadata:
        return None
    found, n = entry(gguf, key, int), len(entry(gguf, "tokenizer.ggml.tokens", list))
    if not 0 <= found < n:
        raise ValueError(f"{gguf.path}: {key} must be an id from 0 to {n - 1}, got {found}; "
                         f"{ANOTHER}")
    return found


def end_ids(gguf: GGUF) -> tuple[int, ...]:
    """The tokens that end an answer: of a text, of a turn, of a message."""
    found = (token_id(gguf, name) for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(i for i in found if i is not None))


def control_texts(gguf: GGUF) -> dict[str, str]:
    """The texts of control tokens under transformers' names."""
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding",
             "unk_token": "unknown"}
    ids = {name: token_id(gguf, ours) for name, ours in names.items()}
    return {name: gguf.metadata["tokenizer.ggml.tokens"][i] for name, i in ids.items()
            if i is not None}


def write_transformers_files(gguf: GGUF, model: GPT, tokenizer: "Tokenizer", folder: Path) -> None:
    """What `transformers` needs beside model.safetensors: sizes, tokenizer, chat template."""
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    ends = end_ids(gguf)
    write_json(folder / "config.json", {
        **entries_of(model.config), "tie_word_embeddings": model.tied, "dtype": dtype,
        "bos_token_id": token_id(gguf, "bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends)})
    with replacing(folder / "tokenizer.json") as part:
        tokenizer.save(str(part))
    template = gguf.metadata.get("tokenizer.chat_template")
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **control_texts(gguf),
        "clean_up_tokenization_spaces": False,
        **({} if template is None else {"chat_template": template})})


class SkipInit(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: weights that are about to be replaced stay undrawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **({} if kwargs is None else kwargs))


def empty(gguf: GGUF) -> tuple[GPT, "Tokenizer"]:
    """The model on the meta device, for read_weights, and its tokenizer.

    ValueError if the file says anything that GPT or the tokenizer does not compute.
    """
    config = read_config(gguf)
    tokenizer = read_tokenizer(gguf)
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise ValueError(f"{gguf.path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the "
                         f"model {config.vocab_size}; {ANOTHER}")
    with torch.device("meta"), SkipInit():
        return GPT(config), tokenizer


def load(gguf: GGUF, dtype: torch.dtype = torch.float32) -> tuple[GPT, "Tokenizer"]:
    """The model, in evaluation mode, and its tokenizer; ValueError as `empty` and `read_weights`
    raise it."""
    model, tokenizer = empty(gguf)
    weights = dict(read_weights(gguf, model, dtype))
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval(), tokenizer
