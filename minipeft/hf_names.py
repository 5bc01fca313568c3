"""HuggingFace PEFT's keywords that our configs lack: taken where they change nothing, else refused.

One table serves what is typed, LoraConfig(bias="none"), and what stands in an adapter_config.json.
"""
import functools
from dataclasses import asdict, fields

from .adapter import nearest

# Keys of HuggingFace PEFT 0.21 that do not change what an adapter computes, ...
HARMLESS = {
    "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
    "fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
    "token_dim", "num_layers", "num_attention_heads", "init_weights",
    "tokenizer_name_or_path", "tokenizer_kwargs",
}
# ... and those that do, at any other value than None, {}, [], or this:
NOT_IMPLEMENTED = {
    "alpha_pattern": {}, "rank_pattern": {}, "bias": "none", "lora_bias": False, "use_dora": False,
    "use_qalora": False, "use_bdlora": False, "modules_to_save": None, "layers_to_transform": None,
    "layers_pattern": None, "layer_replication": None, "exclude_modules": None,
    "target_parameters": None, "trainable_token_indices": None, "alora_invocation_tokens": None,
    "arrow_config": None, "kasa_config": None, "monteclora_config": None, "velora_config": None,
    "num_transformer_submodules": 1,
}


def check_neutral(key: str, value, where) -> None:
    """ValueError for a key that we know, do not implement, and that is not at a neutral value."""
    if key in NOT_IMPLEMENTED and value not in (NOT_IMPLEMENTED[key], None, {}, []):
        raise ValueError(f"{where}: {key}={value!r} is not implemented here, and without it "
                         f"the adapter would compute something else; use HF PEFT for it")


def hf_keywords(config: type) -> type:
    """The dataclass `config`, which takes HuggingFace PEFT's other keywords at neutral values too.

    ValueError for another value, TypeError for a keyword that neither has.
    """
    known, build = {field.name for field in fields(config)}, config.__init__

    @functools.wraps(build)
    def __init__(self, *args, **given):
        for key in given.keys() - known - HARMLESS:
            if key == "peft_type" and given[key] == config.peft_type:
                continue
            if key not in NOT_IMPLEMENTED:
                raise TypeError(f"{config.__name__} has no {key!r}{nearest(key, known)}; it takes "
                                f"{', '.join(field.name for field in fields(config))}")
            check_neutral(key, given[key], config.__name__)
        build(self, *args, **{key: value for key, value in given.items() if key in known})

    def to_dict(self) -> dict:
        return {"peft_type": self.peft_type, **asdict(self)}

    config.__init__, config.to_dict = __init__, to_dict
    return config
