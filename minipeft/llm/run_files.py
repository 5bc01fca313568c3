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

from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..figures import new_figure, save_figure
from ..files import read_json, replacing, save_tensors
from ..folders import locked, remove_empty
from ..gpt import GPT
from ..nf4 import NF4Linear, quantize_model
from ..peft_model import PeftModel
from ..recipes import RECIPES, Recipe
from ..state import check_unwrapped

RUN, CHECKPOINT, WEIGHTS = "run.json", "checkpoint.safetensors", "model.safetensors"
REPORT, CURVES = "report.json", "curves.png"


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], history: dict) -> None:
    """One file, so that it is whole or absent."""
    with replacing(folder / CHECKPOINT) as part:
        save_tensors(part, tensors, {"history": json.dumps(history)})


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, history), None if there is none yet; ValueError for a file that is damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return load_file(path), json.loads(file.metadata()["history"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the run starts "
                         f"anew") from None


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
    left_out = {f"{path}.{name}" for path, m in four_bit.items() for name, _ in m.named_buffers()}
    left_out |= {"lm_head.weight"} if model.tied else set()
    weights = {name: t for name, t in model.state_dict().items() if name not in left_out}
    return weights | {f"{path}.weight": m.dequantize() for path, m in four_bit.items()}


def load_trained(model: GPT, folder: Path) -> nn.Module:
    """`model` with what the run in `folder` has trained, or with any HF PEFT adapter there."""
    folder = Path(folder)
    recipe = run_method(folder) if (folder / RUN).exists() else RECIPES["lora"]
    if recipe.four_bit:
        quantize_model(model)                           # the adapter has learned to stand on this
    if recipe.config is not None:
        return PeftModel.from_pretrained(model, folder)
    model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    model.tie_weights()
    return model


def run_method(folder: Path) -> Recipe:
    """The recipe of the method that the run in `folder` has trained."""
    recipe = read_settings(folder).get("recipe")
    method = recipe.get("method") if isinstance(recipe, dict) else None
    if method not in list(RECIPES):                     # a list: the file may hold anything
        raise ValueError(f"{folder / RUN} must name a method, one of {', '.join(RECIPES)}, got "
                         f"{method!r}")
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


def read_settings(folder: Path) -> dict:
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"{folder} holds no {RUN}, so there is no run to continue")
    return read_json(folder / RUN)


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
