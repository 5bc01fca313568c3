"""PeftModel: a frozen model, and sets of adapters that take turns in it.

    peft_model = get_peft_model(model, LoraConfig(r=8))      # freezes, puts adapters in place
    ... train whatever has requires_grad ...
    peft_model.save_pretrained(folder)                       # opens in HuggingFace PEFT too
    model = peft_model.merge_and_unload()                    # or unload(): the base, bitwise

A method is one line in METHODS.
"""
import re
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import adapter_file
from .adapter import (Adapter, AdapterSet, find_modules, nearest, put_in_place, replace_modules,
                      take_out)
from .adapter_file import load_module_tensors, module_tensors
from .hf_names import check_arguments
from .houlsby import HoulsbyConfig, houlsby_adapters
from .lora import LoraConfig, lora_adapters
from .nf4 import NF4Linear
from .prefix import PrefixTuningConfig, load_prefix_tensors, prefix_adapters, prefix_tensors
from .prompt import PromptTuningConfig, load_prompt_tensors, prompt_adapters, prompt_tensors
from .state import (by_adapters_name, by_present_place, check_one_place, check_unwrapped, untie,
                    with_signature_of)


@dataclass(frozen=True)
class Method:
    config: type
    adapters: Callable        # (model, config, dtype) -> AdapterSet; validates, changes nothing
    tensors: Callable = module_tensors              # AdapterSet -> what its file holds
    load_tensors: Callable = load_module_tensors    # (AdapterSet, what its file holds)
    init_fields: frozenset[str] = frozenset()       # how it was made: not what its file is about


METHODS = {method.config.peft_type: method for method in (
    Method(LoraConfig, lora_adapters, init_fields=frozenset({"init_lora_weights"})),
    Method(PromptTuningConfig, prompt_adapters, prompt_tensors, load_prompt_tensors,
           frozenset({"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer"})),
    Method(PrefixTuningConfig, prefix_adapters, prefix_tensors, load_prefix_tensors,
           frozenset({"prefix_init", "prefix_projection", "encoder_hidden_size"})),
    Method(HoulsbyConfig, houlsby_adapters, init_fields=frozenset({"init_std"})),
)}


def get_peft_model(model: nn.Module, peft_config, adapter_name: str = "default",
                   adapter_dtype: torch.dtype = torch.float32, **neutral) -> "PeftModel":
    """Freeze `model`, put the adapters of `peft_config` in place, and return both as a PeftModel.

    The trainable weights are kept in `adapter_dtype`; LoRA multiplies in the base's own dtype.

    TypeError or ValueError, with the model as it was, if the config does not fit the model or the
    model carries adapters already. (`neutral`: HF PEFT's other arguments, if they ask for nothing.)
    """
    check_arguments("get_peft_model", neutral)
    return PeftModel(model, peft_config, adapter_name, adapter_dtype)


class PeftModel(nn.Module):
    """`base_model` with the adapters of `active_adapter` in place; the other sets wait."""

    def __init__(self, model: nn.Module, peft_config, adapter_name: str = "default",
                 adapter_dtype: torch.dtype = torch.float32,
                 tensors: dict[str, Tensor] | None = None, where: Path | None = None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"a model must be an nn.Module, got {type(model)}")
        if any(isinstance(module, Adapter | PeftModel) for module in model.modules()):
            raise ValueError("the model carries adapters already; use add_adapter on its "
                             "PeftModel, or unload() it first")
        check_unwrapped(model)
        check_adapter_name(adapter_name)
        adapters = build(model, peft_config, adapter_dtype, tensors, where)
        super().__init__()
        self.base_model = model
        self.training = model.training
        self.adapter_dtype = adapter_dtype
        self.peft_config = {adapter_name: peft_config}
        self.adapter_sets = {adapter_name: adapters}
        self.active_adapter: str | None = None
        self.was_trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        model.requires_grad_(False)
        self._activate(adapter_name)
        self.forward = types.MethodType(with_signature_of(model), self)
        self.register_state_dict_post_hook(by_adapters_name)
        self.register_load_state_dict_pre_hook(by_present_place)

    def forward(self, *args, **kwargs) -> Tensor:
        return self.base_model(*args, **kwargs)

    def generate(self, *args, **kwargs) -> Tensor:
        return self.base_model.generate(*args, **kwargs)

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def __getattr__(self, name: str):
        """What neither this class nor nn.Module has is the base model's: config, device, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "base_model" not in self.__dict__.get("_modules", ()):
                raise
        base = self.base_model
        if not hasattr(base, name):
            raise AttributeError(f"neither PeftModel nor its base model, a {type(base).__name__}, "
                                 f"has {name!r}")
        return getattr(base, name)

    # Sets of adapters

    @property
    def active_adapters(self) -> list[str]:
        return [] if self.active_adapter is None else [self.active_adapter]

    def _activate(self, name: str | None) -> None:
        """Let the set `name` stand in place of the active one; None: the bare base."""
        if self.active_adapter is not None:
            take_out(self.base_model, self.adapter_sets[self.active_adapter])
        if name is not None:
            put_in_place(self.base_model, self.adapter_sets[name])
        self.active_adapter = name
        self.waiting = nn.ModuleList(adapter for other, adapters in self.adapter_sets.items()
                                     for adapter in adapters.values() if other != name)
        self.waiting.train(self.training)
        for other, adapters in self.adapter_sets.items():
            for adapter in adapters.values():
                for parameter in adapter.own_state().values():
                    parameter.requires_grad_(other == name
                                             and not self.peft_config[name].inference_mode)

    def _check_known(self, name: str) -> None:
        if name not in self.adapter_sets:
            raise ValueError(f"no adapter {name!r}{nearest(str(name), self.adapter_sets)}; "
                             f"there are: {', '.join(self.adapter_sets)}")

    def set_adapter(self, adapter_name: str) -> None:
        """Put that set in place and make it trainable (unless loaded for inference)."""
        self._check_known(adapter_name)
        self._activate(adapter_name)

    def add_adapter(self, adapter_name: str, peft_config, tensors: dict[str, Tensor] | None = None,
                    where: Path | None = None) -> None:
        """Build one more set, of any method; it waits until set_adapter(adapter_name)."""
        check_adapter_name(adapter_name)
        if adapter_name in self.adapter_sets:
            raise ValueError(f"an adapter {adapter_name!r} exists already; delete_adapter it, or "
                             f"choose another name")
        with self.disable_adapter():
            adapters = build(self.base_model, peft_config, self.adapter_dtype, tensors, where)
            self.peft_config[adapter_name] = peft_config
            self.adapter_sets[adapter_name] = adapters
            for adapter in adapters.values():
                adapter.base_layer = None

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget a set; if it was active, the first one left takes its place."""
        self._check_known(adapter_name)
        if len(self.adapter_sets) == 1:
            raise ValueError(f"{adapter_name!r} is the only adapter; unload() gives the base model "
                             f"back")
        remaining = next(other for other in self.adapter_sets if other != adapter_name)
        self._activate(remaining if adapter_name == self.active_adapter else self.active_adapter)
        del self.adapter_sets[adapter_name], self.peft_config[adapter_name]
        self._activate(self.active_adapter)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model is the bare base, bitwise."""
        name = self.active_adapter
        self._activate(None)
        try:
            yield
        finally:
            self._activate(name)

    # Leaving

    def unload(self) -> nn.Module:
        """The base model, bitwise and trainable as it was; the adapters are gone from it."""
        self._activate(None)
        for name, parameter in self.base_model.named_parameters():
            parameter.requires_grad_(name in self.was_trainable)
        return self.base_model

    def merge_and_unload(self, **neutral) -> nn.Module:
        """The base model with the active adapters merged into plain layers; a tied head that was
        merged is untied.

        TypeError, with everything as it was, for a method that cannot be merged; ValueError if
        no adapter is active, or if what comes out is not finite.
        """
        check_arguments("merge_and_unload", neutral)
        if self.active_adapter is None:
            raise ValueError("there is no active adapter to merge: it is disabled, or unloaded; "
                             "set_adapter puts one in place")
        adapters = self.adapter_sets[self.active_adapter]
        merged = {path: adapter.merge() for path, adapter in adapters.items()}
        for path, layer in merged.items():
            if not all(p.is_meta or p.isfinite().all() for p in layer.parameters()):
                raise ValueError(f"merging the adapter at {path} gives NaN or infinity: its "
                                 f"training diverged, or the sum is too large for the dtype of the "
                                 f"base; unload() gives the base model back")
        self._activate(None)
        replace_modules(self.base_model, merged)
        untie(self.base_model)
        return self.unload()

    # Counting

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all), as count_parameters."""
        return count_parameters(self)

    def print_trainable_parameters(self) -> None:
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || "
              f"trainable%: {100 * trainable / total:.4f}")

    # Files

    def save_pretrained(self, save_directory: str | Path,
                        selected_adapters: Iterable[str] | None = None, **neutral) -> None:
        """Write these sets (None: every one): "default" into `save_directory`, others into folders
        of their names."""
        check_arguments("save_pretrained", neutral)
        selected = list(self.adapter_sets if selected_adapters is None else selected_adapters)
        for name in selected:
            self._check_known(name)
        for name in selected:
            adapters = self.adapter_sets[name]
            folder = Path(save_directory) / ("" if name == "default" else name)
            method = METHODS[self.peft_config[name].peft_type]
            with self.disable_adapter():
                config = self._config_entries(method, self.peft_config[name], adapters)
            adapter_file.write(folder, config, method.tensors(adapters))

    def _config_entries(self, method: Method, config, adapters: AdapterSet) -> dict:
        entries = {f.name: getattr(config, f.name) for f in fields(config)
                   if f.name not in method.init_fields}
        entries |= config.file_fields(self.base_model)
        entries |= dict(peft_type=config.peft_type, inference_mode=True,
                        base_model_name_or_path=None)
        if "target_modules" in entries:     # as names: HF PEFT knows "all-linear" of its own models
            names = sorted({path.rpartition(".")[2] for path in adapters})
            exact = find_modules(self.base_model, names).keys() == adapters.keys()
            entries["target_modules"] = names if exact else sorted(adapters)
        return entries

    @classmethod
    def from_pretrained(cls, model: nn.Module, model_id: str | Path, adapter_name: str = "default",
                        is_trainable: bool = False,
                        adapter_dtype: torch.dtype = torch.float32, **neutral) -> "PeftModel":
        """`model` with the adapter of folder `model_id` in place; in evaluation mode, as in HF
        PEFT, unless `is_trainable`.

        FileNotFoundError, NotADirectoryError or ValueError, with the model as it was, if the files
        are missing, damaged, for another model, or mean something that is not implemented here.
        """
        check_arguments("from_pretrained", neutral)
        config, tensors = read_adapter(Path(model_id), is_trainable)
        peft_model = cls(model, config, adapter_name, adapter_dtype, tensors, Path(model_id))
        return peft_model if is_trainable else peft_model.eval()

    def load_adapter(self, model_id: str | Path, adapter_name: str,
                     is_trainable: bool = False, **neutral) -> None:
        """Add the adapter of folder `model_id`; it waits until set_adapter(adapter_name)."""
        check_arguments("load_adapter", neutral)
        config, tensors = read_adapter(Path(model_id), is_trainable)
        self.add_adapter(adapter_name, config, tensors, Path(model_id))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all); a 4-bit layer counts the weights it stands for, as in HF PEFT."""
    parameters = list(model.parameters())
    packed = sum(m.in_features * m.out_features for m in model.modules()
                 if isinstance(m, NF4Linear))
    return (sum(p.numel() for p in parameters if p.requires_grad),
            sum(p.numel() for p in parameters) + packed)


def check_adapter_name(name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"an adapter's name must be letters, digits, - and _ (it names a folder), "
                         f"got {name!r}")


def build(model: nn.Module, config, dtype: torch.dtype, tensors: dict[str, Tensor] | None,
          where: Path | None) -> AdapterSet:
    """The adapters of `config`, not in place, with `tensors` if given; `model` is not changed."""
    if type(config) not in [method.config for method in METHODS.values()]:
        raise TypeError(f"a config must be one of "
                        f"{', '.join(method.config.__name__ for method in METHODS.values())}, "
                        f"got {type(config)}")
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"adapter_dtype must be a floating-point dtype such as torch.float32, "
                        f"got {dtype!r}")
    method = METHODS[config.peft_type]
    try:
        adapters = method.adapters(model, config, dtype)
    except ValueError as error:
        if where is None:
            raise
        raise ValueError(f"{where / adapter_file.CONFIG}: {error}") from None
    check_one_place(model, adapters)
    if tensors is not None:
        adapter_file.check_tensors(method.tensors(adapters), tensors, where)
        method.load_tensors(adapters, tensors)
    return adapters


def read_adapter(folder: Path, is_trainable: bool):
    """(config, tensors) of a saved adapter; ValueError for what we cannot load faithfully."""
    entries, tensors = adapter_file.read(folder)
    where = folder / adapter_file.CONFIG
    if entries.get("peft_type") not in list(METHODS):     # a list: the file may hold anything
        raise ValueError(f"{where}: peft_type must be one of {', '.join(METHODS)}, "
                         f"got {entries.get('peft_type')!r}")
    method = METHODS[entries["peft_type"]]
    names = {field.name for field in fields(method.config)}
    known = adapter_file.known_fields(entries, names, method.init_fields, where)
    try:
        config = method.config(**known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return replace(config, inference_mode=not is_trainable), tensors
