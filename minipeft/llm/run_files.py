"""The folder of a fine-tuning run.

    run.json                  the settings, and the sha256 of the data
    checkpoint.safetensors    all that the next step depends on
    adapter_*                 what was trained, at its lowest validation loss, in HF PEFT's files
    report.json, curves.png   what came out

Every file is written whole or not at all.
"""
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..adapter_file import check_tensors
from ..figures import new_figure, save_figure
from ..files import (check_keys, parse_json, read_json, read_tensors, replacing, save_tensors,
                     short)
from ..folders import locked, remove_empty
from ..gpt import GPT
from ..nf4 import NF4Linear, quantize_model
from ..peft_model import PeftModel
from ..recipes import RECIPES, Recipe, in_four_bits
from ..state import check_unwrapped
from . import base
from .tokenizer import FolderTokenizer

RUN, CHECKPOINT, WEIGHTS = "run.json", "checkpoint.safetensors", "model.safetensors"
REPORT, CURVES = "report.json", "curves.png"


# What run.json and the history in a checkpoint must hold
METHOD = {"recipe": {"method": str}}
RECIPE = {"method": str, "size": (int, type(None)), "lr": (float, int), "dtype": str,
          "recompute": bool, "seed": int}
SCHEDULE = dict.fromkeys(("steps", "batch_size", "micro_batch", "every", "patience"), int)
SETTINGS = {"model": str, "recipe": RECIPE, "schedule": SCHEDULE,
            "data": {"training": str, "validation": (str, type(None)), "max_length": int}}
STEP = {"loss": (float, int), "grad_norm": (float, int), "tokens": int, "seconds": (float, int)}
VALIDATION = {"step": int, "loss": (float, int), "exact_match": (float, int)}
ANEW = "delete it, and the run starts anew"


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], history: dict) -> None:
    """One file, so that it is whole or absent."""
    with replacing(folder / CHECKPOINT) as part:
        save_tensors(part, tensors, {"history": json.dumps(history)})


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, history), None if there is none yet; ValueError for a file that is damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path, ANEW)
    history = parse_json(metadata.get("history", "").encode(), f"{path} is damaged: its history",
                         ANEW, keys={**dict.fromkeys(STEP, list), "validation": list})
    done = len(history["loss"])
    if {len(history[name]) for name in STEP} != {done}:
        raise ValueError(f"{path} is damaged: its history has {done} losses and another number of "
                         f"{' or '.join(name for name in STEP if len(history[name]) != done)}; "
                         f"{ANEW}")
    if not history["validation"]:
        raise ValueError(f"{path} is damaged: it is written after a validation, and its history "
                         f"has none; {ANEW}")
    for rows, keys in (([dict(zip(STEP, row)) for row in zip(*(history[n] for n in STEP))], STEP),
                       (history["validation"], VALIDATION)):
        for number, row in enumerate(rows, start=1):
            check_keys(row, keys, f"{path} is damaged: entry {number} of its history", ANEW)
    return tensors, history


def check_checkpoint(tensors: dict[str, Tensor], trained: dict[str, Tensor], folder: Path) -> None:
    """ValueError, which names the tensor, unless a checkpoint fits what is `trained`."""
    path, found = folder / CHECKPOINT, dict(tensors)
    wanted = {f"{kind}.{name}": t for name, t in trained.items()
              for kind in ("parameter", "exp_avg", "exp_avg_sq")}
    state = found.pop("rng", None)
    check_tensors(wanted, found, path)
    for key, tensor in found.items():
        if tensor.dtype != wanted[key].dtype:
            raise ValueError(f"{path}: {key} must be of {wanted[key].dtype}, got {tensor.dtype}; "
                             f"{ANEW}")
    try:
        torch.Generator().set_state(state)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: rng is no state of torch's random numbers "
                         f"({str(error).splitlines()[0]}); {ANEW}") from None


def save_trained(model: nn.Module, folder: Path) -> None:
    """The adapter, or after full fine-tuning every weight."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
    else:
        write_weights(model, folder)


def write_weights(model: GPT, folder: Path) -> None:
    """model.safetensors under HuggingFace's names."""
    with replacing(folder / WEIGHTS) as part:
        save_tensors(part, own_weights(model), {"format": "pt"})


def own_weights(model: GPT) -> dict[str, Tensor]:
    """Each weight once: a tied head as the embedding, and what is left in 4 bits as the weights it
    stands for. ValueError for a wrapped model."""
    check_unwrapped(model)
    four_bit = {path: m for path, m in model.named_modules() if isinstance(m, NF4Linear)}
    left_out = {f"{path}.{name}" for path, m in four_bit.items()
                for name in (*dict(m.named_buffers()), "_extra_state")}
    left_out |= {"lm_head.weight"} if model.tied else set()
    weights = {name: t for name, t in model.state_dict().items() if name not in left_out}
    return weights | {f"{path}.weight": m.dequantize() for path, m in four_bit.items()}


def load_base(model: str | None, adapter: Path | None,
              four_bit: bool) -> tuple[GPT, FolderTokenizer]:
    """The model that an adapter stands on, and its tokenizer: `model`, or else the one that the run
    in `adapter` names, or else SmolLM2. ValueError for another than the run was trained on.

    four_bit: in 4 bits, if the run has seen it so
    """
    name, digest = (None, None) if adapter is None else run_model(adapter)
    chosen = model if model is not None else base.SMOLLM2 if name is None else name
    four_bit = four_bit and name is not None and run_method(adapter).four_bit
    found = base.load(chosen, four_bit=four_bit)
    if name is not None:
        base.check_same(chosen, digest, str(adapter))
    return found


def load_trained(model: GPT, folder: Path) -> nn.Module:
    """`model` with what the run in `folder` has trained, or with any HF PEFT adapter there.

    Every file is read in full, and must fit the model, before the model changes.
    """
    folder = Path(folder)
    recipe = run_method(folder) if (folder / RUN).exists() else RECIPES["lora"]
    if recipe.four_bit and not in_four_bits(model):
        quantize_model(model)                           # the adapter has learned to stand on this
    if recipe.config is not None:
        return PeftModel.from_pretrained(model, folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS}, which a finished full run has")
    weights, _ = read_tensors(folder / WEIGHTS)
    check_tensors(own_weights(model), weights, folder / WEIGHTS)
    model.load_state_dict(weights, strict=False)               # all but a tied head
    model.tie_weights()
    return model


def run_model(folder: Path) -> tuple[str | None, str | None]:
    """The model that the run in `folder` has trained, and its fingerprint, as run.json has them;
    None where there is no such file or entry."""
    settings = read_settings(folder, METHOD) if (folder / RUN).exists() else {}
    found = settings.get("model"), settings.get("model_sha256")
    for name, value in zip(("model", "model_sha256"), found):
        if not isinstance(value, str | None):
            raise ValueError(f"{folder / RUN}: {name} must be a text, got {short(value)}; restore "
                             f"it")
    return found


def run_method(folder: Path) -> Recipe:
    """The recipe of the method that the run in `folder` has trained."""
    method = read_settings(folder, METHOD)["recipe"]["method"]
    if method not in RECIPES:
        raise ValueError(f"{folder / RUN} must name a method, one of {', '.join(RECIPES)}, got "
                         f"{short(method)}")
    return RECIPES[method]


@contextmanager
def claimed(folder: Path, resume: bool = False) -> Iterator[None]:
    """Inside, the folder of a run, made if need be, is this process's alone; ValueError if another
    is at work in it, or for a new run if it holds anything.

    A new run that fails with no more than its settings in the folder leaves nothing behind: the
    corrected command is to have it. An interrupted one can be resumed, and stays.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if not resume:
        new_folder(folder)
    with locked(folder):
        stays = resume
        try:
            if not resume:
                new_folder(folder)          # another may have begun and ended meanwhile
            yield
            stays = True
        except KeyboardInterrupt:
            stays = (folder / RUN).exists()
            raise
        finally:
            if not stays and {path.name for path in folder.iterdir()} <= {RUN}:
                (folder / RUN).unlink(missing_ok=True)
                remove_empty(made)


def new_folder(folder: Path) -> None:
    """Make the folder of a new run; ValueError if it holds anything."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"a run is kept in a folder, but {folder} is a file")
    if folder.exists() and any(folder.iterdir()):
        another = (folder / RUN).exists()
        raise ValueError(f"{folder} holds {'another run' if another else 'other files'}; choose "
                         f"another folder" + (", or continue it with --resume" if another else ""))
    folder.mkdir(parents=True, exist_ok=True)


def read_settings(folder: Path, wanted: dict = SETTINGS) -> dict:
    """run.json; ValueError, which names the key, unless it has all that is `wanted`, and of the
    recipe and the schedule nothing else."""
    path, do = folder / RUN, "restore it, or begin a new run in another folder"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RUN}, so there is no run to continue; "
                                f"begin one with --data in place of --resume")
    settings = read_json(path, do, keys=wanted)
    for part in ("recipe", "schedule") if wanted is SETTINGS else ():
        check_keys(settings[part], wanted[part], f"{path}: {part}", do, others=False)
    return settings


def draw_curves(history: dict, path: Path) -> None:
    save_figure(lambda: curves_figure(history), path)


def curves_figure(history: dict) -> Figure:
    """Training loss a step, validation loss and exact match, over the steps."""
    figure, (axes,) = new_figure()
    steps = [scores["step"] for scores in history["validation"]]
    axes.plot(range(1, len(history["loss"]) + 1), history["loss"], alpha=0.5, label="training loss")
    axes.plot(steps, [s["loss"] for s in history["validation"]], "o-", label="validation loss")
    axes.set(xlabel="step", ylabel="nats per labelled token", yscale="log")
    right = axes.twinx()
    right.grid(False)
    right.plot(steps, [s["exact_match"] for s in history["validation"]], "s--", color="tab:green",
               label="validation exact match")
    right.set(ylabel="exact match", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3)
    return figure
