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


# Of its functions, at the values that ask for nothing
ARGUMENTS = {"autocast_adapter_dtype": True, "mixed": False, "revision": None, "config": None,
             "ephemeral_gpu_offload": False, "key_mapping": None,
             "torch_device": None, "safe_serialization": True, "is_main_process": True,
             "save_embedding_layers": "auto", "path_initial_model_for_weight_conversion": None,
             "adapter_names": None}
WHATEVER = ("low_cpu_mem_usage", "progressbar", "safe_merge")     # merging is always safe
# Names of the package that have another way here
INSTEAD = {
    "prepare_model_for_kbit_training": "quantize_model(model), then get_peft_model: it freezes the "
                                       "base, and the adapters are float32",
    "PeftConfig": "the config of a method, such as LoraConfig",
    "PeftModelForCausalLM": "PeftModel",
    "PeftModelForSeq2SeqLM": "PeftModel",
    "AutoPeftModel": "PeftModel.from_pretrained(model, folder)",
    "AutoPeftModelForCausalLM": "PeftModel.from_pretrained(model, folder)",
    "get_peft_model_state_dict": "peft_model.state_dict(): the keys under adapters.NAME",
    "set_peft_model_state_dict": "peft_model.load_state_dict(state)",
    "inject_adapter_in_model": "get_peft_model(model, config).base_model",
}


def check_arguments(call: str, given: dict) -> None:
    """TypeError for an argument of HuggingFace PEFT's that is unknown here, or not neutral."""
    for key, value in given.items():
        if key in WHATEVER:
            continue
        if key not in ARGUMENTS:
            raise TypeError(f"{call} has no argument {key!r}{nearest(key, ARGUMENTS)}")
        if value != ARGUMENTS[key]:
            raise TypeError(f"{call}: {key}={value!r} is not implemented here; leave it out, and "
                            f"see docs/differences.md")


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
