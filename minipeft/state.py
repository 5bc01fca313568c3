"""State in one place: the names in a PeftModel's state_dict, tied weights, wrapped models.

    base_model.model.layers.0.self_attn.q_proj.weight                        as without adapters
    adapters.default.model.layers.0.self_attn.q_proj.lora_A.weight           whoever is active

A parameter with two names (a tied head) is in a state_dict once.
"""
import inspect
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from .adapter import AdapterSet
from .gpt import GPTConfig

# Torch's modules that hold a model and put a name of their own into every path inside
WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel",
            "FullyShardedDataParallel", "CheckpointWrapper", "AveragedModel")


def check_unwrapped(model: nn.Module) -> None:
    """ValueError if a wrapper stands in the model: its name would stand in every saved key."""
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__name__ in WRAPPERS and kind.__module__.startswith("torch."):
            found = path if path else "the model"
            raise ValueError(f"{found} is wrapped in {kind.__name__}, whose name for what is "
                             f"inside would stand in every saved key; pass the module inside, and "
                             f"wrap the result")


def check_one_place(model: nn.Module, adapters: AdapterSet) -> None:
    """ValueError if a module to be adapted stands at a second path, where it would stay as it was,
    and which a file has no key for."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    for path in adapters:
        first, *others = places[id(model.get_submodule(path))]
        if others:
            raise ValueError(f"the module at {first!r} stands at {others[0]!r} too, which an "
                             f"adapter at the first would leave bare; give each place its own "
                             f"(copy.deepcopy), or adapt other modules")


# Names


def with_signature_of(model: nn.Module) -> Callable:
    """PeftModel.forward under the signature of the model's: transformers' Trainer reads it to see
    which columns of the data are wanted."""
    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    forward.__signature__ = inspect.signature(type(model).forward)
    return forward


def places(model: nn.Module) -> list[tuple[str, str]]:
    """(start of a present name, start of its key); the first that fits counts."""
    pairs, waiting = [], 0
    for name, adapters in model.adapter_sets.items():
        for path in adapters:
            key = f"adapters.{name}.{path}."
            if name == model.active_adapter:
                pairs += [(f"base_model.{path}.base_layer.", f"base_model.{path}."),
                          (f"base_model.{path}.", key)]
            else:
                pairs.append((f"waiting.{waiting}.", key))
                waiting += 1
    return pairs


def rename(state: dict[str, Tensor], pairs: list[tuple[str, str]], prefix: str) -> None:
    """Let every key that starts with the first of a pair start with the second, in place."""
    for key in [key for key in state if key.startswith(prefix)]:
        value, inner = state.pop(key), key.removeprefix(prefix)
        old, new = next((pair for pair in pairs if inner.startswith(pair[0])), ("", ""))
        state[prefix + new + inner.removeprefix(old)] = value


def second_names(model: nn.Module) -> dict[str, str]:
    """For each further name of a parameter, its first."""
    first, second = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            second[name] = first[parameter]
    return second


def by_adapters_name(model: nn.Module, state: dict[str, Tensor], prefix: str, _) -> None:
    for name in second_names(model):
        state.pop(prefix + name, None)
    rename(state, places(model), prefix)


def by_present_place(model: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    rename(state, [(key, name) for name, key in places(model)], prefix)
    for name, first in second_names(model).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


# Tied weights


def untie(model: nn.Module) -> None:
    """Let no config in the model say that head and embedding are one tensor where they are two."""
    for module in list(model.modules()):
        config = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False) and hasattr(module,
                                                                     "get_output_embeddings"):
            head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
            if head is not None and head.weight is not embedding.weight:
                set_untied(model, config)


def set_untied(model: nn.Module, config) -> None:
    if not isinstance(config, GPTConfig):
        config.tie_word_embeddings = False            # transformers': one object, shared
        return
    untied = replace(config, tie_word_embeddings=False)
    for module in model.modules():
        if getattr(module, "config", None) is config:
            module.config = untied
