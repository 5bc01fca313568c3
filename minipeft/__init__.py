"""minipeft: parameter-efficient fine-tuning, built to be understood.

An adapter is a small trainable module that stands where a frozen module stood, and calls it.
"""
import sys

try:
    from .adapter import TaskType
    from .gpt import GPT, GPTConfig
    from .hf_names import INSTEAD
    from .houlsby import HoulsbyConfig
    from .lora import LoraConfig
    from .nf4 import quantize_model
    from .peft_model import PeftModel, get_peft_model
    from .prefix import PrefixTuningConfig
    from .prompt import PromptTuningConfig
except ModuleNotFoundError as error:
    # with this `name`, `python -m minipeft` prints it as one line
    raise ImportError(f"minipeft needs {error.name}, which {sys.executable} does not have; "
                      f"activate the environment that make has set up (. .venv/bin/activate), or "
                      f"install with: python -m pip install -r requirements.txt",
                      name="minipeft") from error

__all__ = ["GPT", "GPTConfig", "TaskType", "LoraConfig", "PromptTuningConfig", "PrefixTuningConfig",
           "HoulsbyConfig", "get_peft_model", "PeftModel", "quantize_model"]


def __getattr__(name: str):
    """What HuggingFace PEFT has under a name that is not here."""
    if name in INSTEAD:
        raise ImportError(f"minipeft has no {name}; write instead: {INSTEAD[name]}")
    raise AttributeError(f"module 'minipeft' has no attribute {name!r}")
