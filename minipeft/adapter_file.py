"""An adapter's two files, with HuggingFace PEFT's names, keys and shapes.

    adapter_config.json           what to build
    adapter_model.safetensors     the tensors to put into it

Both are written whole or not at all. Reading is strict: what we would load with
another function than it was saved with is refused.
"""
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .adapter import AdapterSet, nearest
from .files import read_json, read_tensors, replacing, save_tensors
from .hf_names import HARMLESS, NOT_IMPLEMENTED, check_neutral

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."        # PEFT's model, its tuner, then the user's module path

CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")    # as init_lora_weights


def module_tensors(adapters: AdapterSet) -> dict[str, Tensor]:
    """The tensors of adapters that are saved module by module, under their file keys."""
    return {f"{PREFIX}{path}.{name}": tensor for path, adapter in adapters.items()
            for name, tensor in adapter.own_state().items()}


@torch.no_grad()
def load_module_tensors(adapters: AdapterSet, tensors: dict[str, Tensor]) -> None:
    for key, parameter in module_tensors(adapters).items():
        parameter.copy_(tensors[key])


def write(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    """Both files into `folder` (made if need be); NotADirectoryError if it is a file, ValueError
    for tensors on the meta device or not finite: reading would refuse them."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"an adapter is saved into a folder, but {folder} is a file")
    if any(t.is_meta for t in tensors.values()):
        raise ValueError("the adapter is on the meta device: it has shapes, but no numbers to save")
    for key, tensor in tensors.items():
        check_finite(key, tensor, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG) as config_part, replacing(folder / TENSORS) as tensors_part:
        config_part.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        save_tensors(tensors_part, tensors, {"format": "pt"})


def read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """(config, tensors) as they stand in the files; FileNotFoundError, NotADirectoryError, or
    ValueError for files that are not what their names say."""
    if not folder.exists():
        raise FileNotFoundError(f"no adapter folder {folder}: it must hold {CONFIG} and {TENSORS}")
    if not folder.is_dir():
        raise NotADirectoryError(f"an adapter is a folder with {CONFIG} and {TENSORS}, "
                                 f"but {folder} is a file")
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            there = sorted(p.name for p in folder.iterdir())
            raise FileNotFoundError(f"{folder} holds no {name}; it holds "
                                    f"{', '.join(there) if there else 'nothing'}")
    return read_json(folder / CONFIG), read_tensors(folder / TENSORS)[0]


def known_fields(config: dict, fields: set[str], init_fields: set[str], where: Path) -> dict:
    """The entries of a config file that are `fields` of ours; how they were drawn no longer counts.

    ValueError for a key whose meaning we know and do not implement, a warning for an unknown one.
    """
    for key, value in config.items():
        check_neutral(key, value, where)
        if key == "init_lora_weights" and str(value).startswith(CHANGES_THE_BASE):
            raise ValueError(f"{where}: init_lora_weights={value!r} has changed the base weights, "
                             f"which these files do not hold; convert it to plain LoRA in HF PEFT")
        if key not in fields | init_fields | HARMLESS | set(NOT_IMPLEMENTED) | {"peft_type"}:
            warnings.warn(f"{where}: ignoring the unknown key {key!r}", stacklevel=4)
    return {key: value for key, value in config.items() if key in fields - init_fields}


def check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    """ValueError unless `found` has the keys and shapes of `expected` and finite numbers."""
    check_shapes(expected, found, where)
    for key, tensor in found.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{where}: {key} must hold floating-point numbers, got {tensor.dtype}")
        if not tensor.double().isfinite().all():
            raise ValueError(f"{where}: {key} must hold finite numbers, got NaN or infinity; "
                             f"the training that made it diverged, or the file is damaged")


def check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    """ValueError unless `found` has the keys and shapes of `expected`."""
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unexpected:
        rows = [f"; it brings an embedding or head for a vocabulary of {len(found[key])} tokens, "
                f"which was enlarged in training" for key in sorted(unexpected) if per_token(key)]
        raise ValueError(f"{where} does not fit this model: " + "; ".join(
            f"{len(keys)} {kind}, such as {min(keys)!r}{nearest(min(keys), others)}"
            for kind, keys, others in (("keys missing", missing, found),
                                       ("keys unexpected", unexpected, expected)) if keys)
            + "".join(rows[:1]))
    for key, tensor in found.items():
        wanted = expected[key].shape
        if tensor.shape != wanted:
            what = "the vocabulary" if per_token(key) and tensor.shape[1:] == wanted[1:] else "r"
            raise ValueError(f"{where}: {key} must have shape {tuple(wanted)}, "
                             f"got {tuple(tensor.shape)}; is {what}, or the model, another one?")


def per_token(key: str) -> bool:
    """Whether a tensor has a row for each token of a vocabulary."""
    return key.endswith(("embed_tokens.weight", "lm_head.weight", "lm_head.base_layer.weight",
                         "embed_tokens.base_layer.weight", "lm_head.lora_B.weight"))


def check_finite(key: str, tensor: Tensor, where: Path) -> None:
    if not tensor.double().isfinite().all():
        raise ValueError(f"{where}: {key} must hold finite numbers, got NaN or infinity; "
                         f"the training that made it diverged, or the file is damaged")
