"""The one idea: an adapter is a small trainable module that stands where a frozen module stood,
and calls it.

    before   parent.child = frozen
    after    parent.child = Adapter(frozen)        frozen is now Adapter.base_layer

An adapter out of place holds no base, so any number of adapter sets can wait beside one model:
putting another set in place moves one pointer a layer.
"""
import difflib
from collections.abc import Iterable
from enum import Enum
from typing import ClassVar

from torch import Tensor, nn


class TaskType(str, Enum):
    """What an adapter is for; HuggingFace PEFT picks the model class by it."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class Adapter(nn.Module):
    """Stands where `base_layer` stood and calls it; everything else it owns is what is trained."""

    cannot_merge: ClassVar[str] = "it computes something that its base layer cannot"

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer

    def merge(self) -> nn.Module:
        """A plain module that computes the same without the adapter; TypeError if none can."""
        raise TypeError(f"{type(self).__name__} cannot be merged: {self.cannot_merge}; "
                        f"keep the adapter, or unload() it")

    def own_state(self) -> dict[str, Tensor]:
        """The tensors the adapter owns, by name: all but the base's."""
        return {name: tensor for name, tensor in self.named_parameters()
                if not name.startswith("base_layer.")}


AdapterSet = dict[str, Adapter]      # by the dotted path each one stands at


def replace_modules(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Let each module stand at its dotted path."""
    for path, module in modules.items():
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def put_in_place(model: nn.Module, adapters: AdapterSet) -> None:
    """Let each adapter stand in front of the module at its path, in that module's mode."""
    for path, adapter in adapters.items():
        base, adapter.base_layer = model.get_submodule(path), None
        adapter.train(base.training)        # the adapter alone: inside the base, modes may differ
        adapter.base_layer = base
    replace_modules(model, adapters)


def take_out(model: nn.Module, adapters: AdapterSet) -> None:
    """Let each base stand where it stood, and leave the adapters without one."""
    replace_modules(model, {path: adapter.base_layer for path, adapter in adapters.items()})
    for adapter in adapters.values():
        adapter.base_layer = None


def find_modules(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Module]:
    """The modules whose path is a target or ends with "." + target: whole dotted suffixes.

    Raises ValueError naming every target that matches nothing, and the names nearest to it.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    names = {path.rpartition(".")[2] for path in modules} | set(modules)
    found, problems = set(), []
    for target in targets:
        matches = {path for path in modules if path == target or path.endswith("." + target)}
        found |= matches
        if not matches:
            problems.append(f"target {target!r} matches no module{nearest(target, names)}")
    if problems:
        raise ValueError("; ".join(problems))
    return {path: module for path, module in modules.items() if path in found}


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: ", did you mean a, b?", or nothing where nothing is near."""
    close = difflib.get_close_matches(word, sorted(known))
    return f", did you mean {', '.join(close)}?" if close else ""


def check_count(name: str, value) -> None:
    """ValueError unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_choice(name: str, value, choices: Iterable) -> None:
    """ValueError unless `value` is one of `choices`, texts or True and False; PEFT's enums, which
    are texts, will do."""
    if not any(value is choice or (isinstance(value, str) and value == choice)
               for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_task_type(value) -> None:
    """ValueError unless `value` is None or the name of a TaskType without a fresh head."""
    fresh = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
    known = [task.value for task in TaskType if task.value not in fresh]
    if value in fresh:
        raise ValueError(f"task_type {value!s} means to HF PEFT that the model's fresh head is "
                         f"trained and saved with the adapter, which is not implemented here; "
                         f"leave task_type out, then train and save the head yourself")
    if value is not None and value not in known:
        raise ValueError(f"task_type must be None or one of {', '.join(known)}, got {value!r}")
