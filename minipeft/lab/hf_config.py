"""A config.json of HuggingFace as GPT's sizes, or a refusal that names the field it cannot take."""
from dataclasses import dataclass
from pathlib import Path

from ..adapter import check_count
from ..files import plain, read_json, short
from ..gpt import GPTConfig

# transformers' classes that GPT computes, and their defaults where those are not GPTConfig's; in
# none of them is the head tied unless the file says so.
CLASSES = {"llama": {}, "mistral": dict(num_key_value_heads=8, max_position_embeddings=131072,
                                        sliding_window=4096)}
NOTHING = (None, False, 0, [], {})
# The only values that GPT computes, of fields that such classes have ...
ONLY = {"hidden_act": ("silu",), "attention_dropout": (0.0, 0, None),
        "is_encoder_decoder": (False,), "partial_rotary_factor": (1.0, 1, None)}
# ... and names and parts of names of what others have, which must hold nothing
OTHERS = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias", "qk_norm", "qk_layernorm",
          "use_qk_norm", "add_cross_attention", "quantization_config", "text_config",
          "vision_config", "layers_block_type", "use_parallel_residual", "parallel_attn",
          "attn_logit_softcapping", "final_logit_softcapping", "hidden_size_per_layer_input")
PARTS = ("expert", "moe_", "lora_rank", "mamba_", "ssm_", "linear_num_", "linear_key_")
OURS = "minipeft's GPT computes nothing else, and its plan would be another model's"


@dataclass(frozen=True)
class Model:
    """What the planner needs to know of a model."""

    config: GPTConfig
    window: int | None = None       # tokens that one token sees; None: all before it
    note: str = ""                  # what was taken where the file says nothing


def read(path: Path) -> Model:
    """ValueError, which names the file and the field, for what is missing, impossible or not
    computed by GPT."""
    entries = read_json(path, "take another file")
    fields, kind = GPTConfig.__dataclass_fields__, model_class(entries, path)
    check_computed(entries, path)
    missing = [name for name in list(fields)[:5] if name not in entries]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; a Llama config.json has "
                         f"{', '.join(list(fields)[:5])}")
    note = "" if "tie_word_embeddings" in entries else (
        f"{path} does not say tie_word_embeddings: the head is not tied, as {class_name(kind)} "
        f"takes it")
    entries = CLASSES[kind] | entries
    try:
        config = GPTConfig(**{name: entries[name] for name in fields if name in entries})
        window = entries.get("sliding_window")
        if window is not None:
            check_count("sliding_window", window)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if entries.get("head_dim") not in (None, config.head_dim):
        raise ValueError(f"{path}: head_dim must be hidden_size / num_attention_heads = "
                         f"{config.head_dim}, got {short(entries['head_dim'])}; {OURS}")
    return Model(config, window if entries.get("use_sliding_window", True) else None, note)


def class_name(kind: str) -> str:
    return f"{kind.title()}ForCausalLM"


def model_class(entries: dict, path: Path) -> str:
    """The key of CLASSES that a file names; Llama's if it names none. ValueError for another."""
    kind, architectures = entries.get("model_type"), entries.get("architectures")
    if kind is not None and kind not in list(CLASSES):
        raise ValueError(f"{path}: model_type must be {' or '.join(CLASSES)}, got {short(kind)}; "
                         f"{OURS}")
    possible = {class_name(name): name for name in CLASSES if kind in (None, name)}
    if architectures is None:
        return "llama" if kind is None else kind
    if architectures not in [[name] for name in possible]:
        raise ValueError(f"{path}: architectures must be {' or '.join(possible)}, got "
                         f"{short(architectures)}; {OURS}")
    return possible[architectures[0]]


def check_computed(entries: dict, path: Path) -> None:
    """ValueError for a field that says something that GPT does not compute."""
    for key, value in entries.items():
        other = key in OTHERS or any(part in key for part in PARTS)
        wanted = ONLY.get(key, NOTHING)
        if (key in ONLY or other) and not any(type(value) is type(only) and value == only
                                              for only in wanted):
            raise ValueError(f"{path}: {plain(key)} must be {' or '.join(map(repr, wanted))}, got "
                             f"{short(value)}; {OURS}")
    layers = entries.get("layer_types")
    if layers is not None and (not isinstance(layers, list)
                               or set(map(str, layers)) - {"full_attention"}):
        raise ValueError(f"{path}: layer_types must all be 'full_attention', got {short(layers)}; "
                         f"{OURS}")
