"""Fine-tune a language model on conversations: a run that a kill cannot spoil.

A run is a folder: run.json (its settings), checkpoint.safetensors (all that the next step depends
on), the adapter with the lowest validation loss in HF PEFT's files, report.json, curves.png.
"""
import functools
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..adapter import check_choice, check_count
from ..gpt import GPT, DecoderLayer, GPTConfig
from ..measure import synchronize
from ..peft_model import PeftModel, count_parameters
from ..recipes import RECIPES, adapt
from ..state import check_unwrapped
from ..train import (Batch, TrainConfig, adamw, answered_right, labelled_logits, place, summed,
                     train_step)
from .chat import Example, batch_plan, collate
from .run_files import check_checkpoint, read_checkpoint, save_trained, write_checkpoint
from .shared_prefix import shared_logits

@dataclass(frozen=True)
class RunRecipe:
    """What one run trains, and how fast."""

    method: str                # a key of RECIPES
    size: int | None           # r of LoRA, P of a prompt or prefix, m of a bottleneck; full: None
    lr: float                  # peak learning rate
    dtype: str = "float32"     # of the frozen weights; "bfloat16" where a CPU or GPU multiplies it
    recompute: bool = False    # keep each layer's input only, compute the rest again for backward
    seed: int = 0              # of the adapter's first weights and of the order of the data

    def __post_init__(self):
        check_choice("method", self.method, tuple(RECIPES))
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        every_weight = RECIPES[self.method].config is None
        if every_weight and self.dtype != "float32":
            raise ValueError("full fine-tuning wants dtype float32: AdamW's steps are smaller than "
                             "the spacing of bfloat16 numbers and would be rounded away")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr!r}")
        if not every_weight:
            check_count("size", self.size)
        elif self.size is not None:
            raise ValueError(f"full fine-tuning has no size, got {self.size!r}; leave it out")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in 0 ... 2^64 - 1, got {self.seed!r}")

    def adapt(self, model: GPT) -> nn.Module:
        """The model made ready for this run, in place."""
        torch.manual_seed(self.seed)
        if self.recompute:
            recompute_activations(model)
        return adapt(model, self.method, self.size, getattr(torch, self.dtype))


@dataclass(frozen=True)
class Schedule:
    steps: int = 110
    batch_size: int = 8        # examples a step
    micro_batch: int = 8       # examples a forward pass; fewer need less memory
    every: int = 20            # steps between two validations, each followed by a checkpoint
    patience: int = 5          # validations without a new lowest loss, then the run ends

    def __post_init__(self):
        for name, value in asdict(self).items():
            check_count(name, value)


def recompute_activations(model: GPT) -> None:
    """Keep a layer's input, not what it computes, and compute it again.    Chen et al. 2016"""
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def faster_dtype(config: GPTConfig, device: torch.device | str = "cpu", tokens: int = 512) -> str:
    """The dtype in which this machine does a layer's forward and backward faster, timed now.

    bfloat16 halves the bytes, but only some processors multiply it fast, and its backward pass
    through attention is slow on many.
    """
    seconds = {"float32": [], "bfloat16": []}
    layers = {name: DecoderLayer(config).to(device, getattr(torch, name)) for name in seconds}
    for _ in range(4):
        for name, layer in layers.items():
            x = torch.randn(8, tokens // 8, config.hidden_size, requires_grad=True,
                            dtype=getattr(torch, name), device=device)
            start = time.perf_counter()
            layer(x).float().sum().backward()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return min(seconds, key=lambda name: min(seconds[name]))


def parts(examples: list[Example], micro_batch: int, device=None) -> list[Batch]:
    """This process's share of a step's examples, in forward passes of `micro_batch`."""
    rank, processes = place()
    mine = examples[rank::processes]
    return [collate(mine[i:i + micro_batch], device) for i in range(0, len(mine), micro_batch)]


@torch.no_grad()
def validate(model: nn.Module, examples: list[Example], micro_batch: int) -> dict[str, float]:
    """Loss in nats per labelled token, and exact match: the share of examples answered right."""
    device, training, _ = next(model.parameters()).device, model.training, model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)   # losses, labels, exact answers
    for part in parts(examples, micro_batch, device):
        logits, targets = shared_logits(model, part)
        right = answered_right(logits, targets, part[1]).sum()
        sums += torch.tensor([F.cross_entropy(logits.float(), targets, reduction="sum").item(),
                              len(targets), right.item()], device=device)
    model.train(training)
    loss, n_labelled, exact = summed(sums).tolist()
    return {"loss": loss / n_labelled, "exact_match": exact / len(examples)}


# A run


class Run:
    """A model in training and the folder it is kept in: steps, validations, checkpoints."""

    def __init__(self, model: nn.Module, recipe: RunRecipe, schedule: Schedule, folder: Path):
        check_unwrapped(model)          # a checkpoint's keys are the names of its parameters
        self.model, self.recipe, self.schedule, self.folder = model, recipe, schedule, folder
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.config = TrainConfig(recipe.lr)
        self.optimizer = adamw(self.trained.values(), self.config)
        self.history = {"loss": [], "grad_norm": [], "tokens": [], "seconds": [], "validation": []}

    @property
    def done(self) -> int:
        return len(self.history["loss"])

    def step(self, examples: list[Example]) -> None:
        """One AdamW step; FloatingPointError, before anything has changed, if it is not finite."""
        start, device = time.perf_counter(), next(iter(self.trained.values())).device
        batches = parts(examples, self.schedule.micro_batch, device)
        # layers that compute again would fill the shared tokens' caches twice
        logits_of = labelled_logits if self.recipe.recompute else shared_logits
        try:
            loss, norm = train_step(self.model, batches, self.optimizer, self.config, self.done,
                                    self.schedule.steps, logits_of)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}" + (" or dtype float32" if self.recipe.dtype != "float32" else "")
                + f"; {self.kept()}") from None
        for name, value in (("loss", loss), ("grad_norm", norm),
                            ("tokens", sum(len(ids) for ids, _ in examples)),
                            ("seconds", time.perf_counter() - start)):
            self.history[name].append(value)

    def kept(self) -> str:
        """What of this run is in its folder."""
        if not self.history["validation"]:
            return f"there is no checkpoint in {self.folder} yet"
        last = self.history["validation"][-1]
        return (f"the checkpoint in {self.folder} is of step {last['step']}, with the validation "
                f"loss {last['loss']:.4g}")

    def validate(self, examples: list[Example]) -> None:
        """Score the model, keep it if it is the best so far, and write a checkpoint.

        FloatingPointError, before anything is written, if what was trained, its optimizer's state
        or the score is not finite.
        """
        scores = validate(self.model, examples, self.schedule.micro_batch)
        state = self.state()
        spoilt = [name for name, t in state.items() if not t.isfinite().all()]
        if spoilt or not math.isfinite(scores["loss"]):
            raise FloatingPointError(
                (f"{spoilt[0]} after step {self.done} holds NaN or infinity" if spoilt else
                 f"the validation loss after step {self.done} is {scores['loss']}")
                + f", so nothing of it is kept; what {self.folder} holds is from before: "
                f"{self.kept()}. Try a learning rate below {self.recipe.lr:g}")
        self.history["validation"].append({"step": self.done, **scores})
        if place()[0] == 0:
            if self.best()["step"] == self.done:
                save_trained(self.model, self.folder)
            write_checkpoint(self.folder, state, self.history)

    def best(self) -> dict:
        return min(self.history["validation"], key=lambda scores: scores["loss"])

    def out_of_patience(self) -> bool:
        scores = self.history["validation"]
        return len(scores) - 1 - scores.index(self.best()) >= self.schedule.patience

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside the history."""
        tensors = {"rng": torch.get_rng_state()}
        for name, parameter in self.trained.items():
            moments = self.optimizer.state[parameter]
            tensors |= {f"parameter.{name}": parameter.detach(),
                        **{f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}}
        return tensors

    @torch.no_grad()
    def restore(self) -> None:
        """Continue at the last checkpoint; the next steps are bitwise those of that run."""
        saved = read_checkpoint(self.folder)
        if saved is None:
            return                                      # killed before the first checkpoint
        tensors, history = saved
        check_checkpoint(tensors, self.trained, self.folder)
        self.history, state = history, {}
        for i, (name, parameter) in enumerate(self.trained.items()):
            parameter.copy_(tensors[f"parameter.{name}"])
            state[i] = {"step": torch.tensor(float(self.done)),
                        **{key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["rng"])


def finetune(run: Run, training: list[Example], validation: list[Example]) -> Iterator[dict]:
    """Train until the schedule or the patience ends; yields the history after every step.

    Whatever was restored is not done again. A yield follows its step's validation, if any.
    """
    size = min(run.schedule.batch_size, len(training))
    if size < place()[1]:
        raise ValueError(f"a step of {size} examples cannot be shared by {place()[1]} processes; "
                         f"raise batch_size or start fewer")
    plan = batch_plan([len(ids) for ids, _ in training], size, run.recipe.seed)
    run.model.train()
    for chosen in itertools.islice(plan, run.done, run.schedule.steps):
        if run.history["validation"] and run.out_of_patience():
            break
        run.step([training[i] for i in chosen])
        if run.done % run.schedule.every == 0 or run.done == run.schedule.steps:
            run.validate(validation)
        yield run.history


def report(run: Run, settings: dict) -> dict:
    """What came out of a run, for report.json."""
    history, seconds = run.history, run.history["seconds"]
    trained, total = count_parameters(run.model)
    whole = total - trained if isinstance(run.model, PeftModel) else total
    return {"settings": settings, "steps": run.done, "processes": place()[1],
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "best": run.best(), "stopped_early": run.done < run.schedule.steps,
            "trainable_parameters": trained,
            "gradient_bytes_per_step": {"this": 4 * trained, "full": 4 * whole},    # float32
            "seconds_per_step": statistics.median(seconds),
            "tokens_per_second": sum(history["tokens"]) / sum(seconds), "history": history}
