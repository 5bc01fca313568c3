"""A config.json of HuggingFace as GPT's config, or a refusal that names the field; and back."""
from dataclasses import asdict, dataclass
from pathlib import Path

from ..adapter import check_count
from ..files import plain, read_json, short
from ..gpt import PROJECTIONS, GPTConfig, RopeScaling

# transformers' classes that GPT computes, and their defaults where those are not GPTConfig's; in
# none of them is the head tied unless the file says so.
QWEN = dict(num_key_value_heads=32, max_position_embeddings=32768, sliding_window=4096,
            use_sliding_window=False)
CLASSES = {"llama": {}, "mistral": dict(num_key_value_heads=8, max_position_embeddings=131072,
                                        sliding_window=4096),
           "qwen2": QWEN, "qwen3": {**QWEN, "head_dim": 128}}
QKV = PROJECTIONS[:3]               # what has a bias in Qwen2, whatever its file says
MAY_HAVE_BIASES = ("llama", "qwen3")
# What a file calls as GPTConfig does, and must have (the first five) or may leave out
SAME = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings")
NOTHING = (None, False, 0, [], {})
# The only values that GPT computes, of fields that such classes have ...
ONLY = {"hidden_act": ("silu",), "attention_dropout": (0.0, 0, None),
        "is_encoder_decoder": (False,), "partial_rotary_factor": (1.0, 1, None),
        "is_causal": (True,)}
# ... and names and parts of names of what others have, which must hold nothing
OTHERS = ("mlp_bias", "qkv_bias", "use_bias", "qk_norm", "qk_layernorm", "use_qk_norm",
          "add_cross_attention", "quantization_config", "text_config", "vision_config", "auto_map",
          "layers_block_type", "use_parallel_residual", "parallel_attn", "rope_interleaved",
          "original_max_position_embeddings", "attention_chunk_size", "use_bidirectional_attention",
          "attn_logit_softcapping", "final_logit_softcapping", "hidden_size_per_layer_input")
PARTS = ("expert", "moe_", "lora_rank", "mamba_", "ssm_", "linear_num_", "linear_key_")
# What says how positions are scaled, by type, beside ROPE; original_... may be the context
ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
SCALED = {"default": (), "linear": ("factor",),
          "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                     "original_max_position_embeddings")}
OURS = "minipeft's GPT computes nothing else; take another model"


@dataclass(frozen=True)
class Model:
    """What a config.json says."""

    config: GPTConfig
    window: int | None = None       # tokens that one token sees; None: all before it
    note: str = ""                  # what was taken where the file says nothing


def read(path: Path) -> Model:
    """ValueError, which names the file and the field, for what is missing, impossible or not
    computed by GPT."""
    entries = read_json(path, "take another file")
    kind = model_class(entries, path)
    check_computed(entries, kind, path)
    missing = [name for name in SAME[:5] if name not in entries]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; a Llama config.json has "
                         f"{', '.join(SAME[:5])}")
    note = "" if "tie_word_embeddings" in entries else (
        f"{path} does not say tie_word_embeddings: the head is not tied, as {class_name(kind)} "
        f"takes it")
    entries = CLASSES[kind] | entries
    biases = PROJECTIONS if entries.get("attention_bias") else QKV if kind == "qwen2" else ()
    try:
        config = GPTConfig(**{name: entries[name] for name in SAME if name in entries},
                           **rope(entries), head_dim=entries.get("head_dim"), biases=biases,
                           qk_norm=kind == "qwen3")
        window = entries.get("sliding_window")
        if window is not None:
            check_count("sliding_window", window)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    slides = "use_sliding_window" not in CLASSES[kind] or entries["use_sliding_window"]
    return Model(config, window if slides else None, note)


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


def check_computed(entries: dict, kind: str, path: Path) -> None:
    """ValueError for a field that says something that GPT does not compute."""
    only = {**ONLY, "attention_bias": (True, False) if kind in MAY_HAVE_BIASES else NOTHING,
            "use_sliding_window": (True, False, None)}
    for key, value in entries.items():
        other = key in OTHERS or any(part in key for part in PARTS)
        wanted = only.get(key, NOTHING)
        if (key in only or other) and not any(type(value) is type(one) and value == one
                                              for one in wanted):
            raise ValueError(f"{path}: {plain(key)} must be {' or '.join(map(repr, wanted))}, got "
                             f"{short(value)}; {OURS}")
    if kind.startswith("qwen") and entries.get("head_dim", 1) is None:
        raise ValueError(f"{path}: head_dim must be a whole number, got None; leave it out")
    layers = entries.get("layer_types")
    if layers is not None and (not isinstance(layers, list)
                               or set(map(str, layers)) - {"full_attention"}):
        raise ValueError(f"{path}: layer_types must all be 'full_attention', got {short(layers)}; "
                         f"{OURS}")


def rope(entries: dict) -> dict:
    """rope_theta and rope_scaling of GPTConfig, from rope_parameters (transformers 5) or from
    rope_theta and rope_scaling (before).

    ValueError, which names the entry, for a type or an entry that is not known.
    """
    given = {key: entries[key] for key in ("rope_parameters", "rope_scaling")
             if entries.get(key) not in (None, {})}
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        raise ValueError("rope_parameters and rope_scaling say different things; keep one")
    field, found = next(iter(given.items()), ("rope_parameters", {}))
    if not isinstance(found, dict):
        raise ValueError(f"{field} must be an object, got {short(found)}")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in list(SCALED) or found.get("type", kind) != kind:
        raise ValueError(f"{field}: rope_type must be one of {', '.join(SCALED)}, got "
                         f"{short(kind if kind not in list(SCALED) else found)}; {OURS}")
    for key, value in found.items():
        if key not in ROPE + SCALED[kind] or (key == "partial_rotary_factor" and value != 1):
            raise ValueError(f"{field}: {plain(key)} is {short(value)}, and the type {kind} has "
                             f"{'only 1' if key in ROPE else 'no such entry'} here; {OURS}")
    theta = found.get("rope_theta", entries.get("rope_theta", GPTConfig.rope_theta))
    if entries.get("rope_theta", theta) != theta:
        raise ValueError(f"rope_theta must be the same in {field} and beside it, got "
                         f"{short(theta)} and {short(entries['rope_theta'])}; keep one")
    if kind == "default":
        return {"rope_theta": theta}
    context = {"original_max_position_embeddings": entries.get("max_position_embeddings")}
    found = (context if kind == "llama3" else {}) | found
    missing = [key for key in SCALED[kind] if found.get(key) is None]
    if missing:
        raise ValueError(f"{field} lacks {', '.join(missing)}, which the type {kind} has")
    return {"rope_theta": theta,
            "rope_scaling": RopeScaling(kind, **{key: found[key] for key in SCALED[kind]})}


def entries_of(config: GPTConfig) -> dict:
    """A config.json for `config`: what `read` reads, and the class of transformers that computes
    it. ValueError if none does."""
    biases = set(config.biases)
    kind = "qwen3" if config.qk_norm else "qwen2" if biases == set(QKV) else "llama"
    if biases and biases != set(QKV if kind == "qwen2" else PROJECTIONS):
        raise ValueError(f"no class of transformers has biases on {', '.join(config.biases)}"
                         f"{' beside norms on q and k' * config.qk_norm} alone")
    scaling = config.rope_scaling
    scaled = {} if scaling is None else {"rope_scaling": {"rope_type": scaling.rope_type, **{
        key: value for key, value in asdict(scaling).items() if key in SCALED[scaling.rope_type]}}}
    return {**{name: getattr(config, name) for name in SAME}, "rope_theta": config.rope_theta,
            "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, **scaled,
            **({"attention_bias": bool(biases)} if kind in MAY_HAVE_BIASES else {}),
            "architectures": [class_name(kind)], "model_type": kind, "hidden_act": "silu"}
