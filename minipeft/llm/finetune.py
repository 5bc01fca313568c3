"""Fine-tune a language model on conversations: a run that a kill cannot spoil.

    loss = sum over a step's labelled tokens of -log p(token) / their number

The gradient of that sum may be collected over several forward passes and several processes: each
takes its share of the step's examples, and the sums of gradients are the gradient of the sum.

A run is a folder: run.json (its settings), checkpoint.safetensors (all that the next step depends
on), the adapter with the lowest validation loss in HF PEFT's files, report.json, curves.png.
"""
import copy
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..adapter import check_choice, check_count
from ..gpt import GPT
from ..houlsby import HoulsbyConfig
from ..lora import LoraConfig
from ..measure import synchronize
from ..nf4 import quantize_model
from ..peft_model import PeftModel, count_parameters, get_peft_model
from ..prefix import PrefixTuningConfig
from ..prompt import PromptTuningConfig
from ..train import IGNORE, TrainConfig, answered_right, labelled_logits
from .chat import Example, batch_plan, collate
from .run_files import read_checkpoint, save_trained, write_checkpoint
from .shared_prefix import shared_logits

# What each method adds, by its size (rank, or virtual tokens, or bottleneck): default size and rate
METHODS = {"lora": (8, 1e-3), "qlora": (8, 1e-3), "prompt": (20, 5e-2), "prefix": (20, 5e-2),
           "houlsby": (32, 1e-3), "full": (None, 5e-5)}


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how fast."""

    method: str                # a key of METHODS
    size: int | None           # r of LoRA, P of a prompt or prefix, m of a bottleneck; full: None
    lr: float                  # peak learning rate
    dtype: str = "float32"     # of the frozen weights; "bfloat16" where a CPU or GPU multiplies it
    recompute: bool = False    # keep each layer's input only, compute the rest again for backward
    seed: int = 0              # of the adapter's first weights and of the order of the data

    def __post_init__(self):
        check_choice("method", self.method, tuple(METHODS))
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.method == "full" and self.dtype != "float32":
            raise ValueError("full fine-tuning wants dtype float32: AdamW's steps are smaller than "
                             "the spacing of bfloat16 numbers and would be rounded away")
        if self.method != "full":
            check_count("size", self.size)


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


def adapt(model: GPT, recipe: Recipe) -> nn.Module:
    """The model made ready to be trained by this method, in place."""
    torch.manual_seed(recipe.seed)
    size, task = recipe.size, dict(task_type="CAUSAL_LM")
    if recipe.method == "qlora":
        quantize_model(model)
    model.to(getattr(torch, recipe.dtype))
    if recipe.recompute:
        recompute_activations(model)
    if recipe.method == "full":
        return model
    lora = functools.partial(LoraConfig, target_modules="all-linear", **task)
    config = {"lora": lambda: lora(size, 2 * size), "qlora": lambda: lora(size, 2 * size),
              "prompt": lambda: PromptTuningConfig(size, "SAMPLE_VOCAB", **task),
              "prefix": lambda: PrefixTuningConfig(size, prefix_init="SAMPLE_VOCAB", **task),
              "houlsby": lambda: HoulsbyConfig(size, **task)}[recipe.method]()
    return get_peft_model(model, config)


def recompute_activations(model: GPT) -> None:
    """Keep a layer's input, not what it computes, and compute it again.    Chen et al. 2016"""
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def faster_dtype(model: GPT, tokens: int = 512) -> str:
    """The dtype in which this machine does a layer's forward and backward faster, timed now.

    bfloat16 halves the bytes, but only some processors multiply it fast, and its backward pass
    through attention is slow on many.
    """
    seconds = {"float32": [], "bfloat16": []}
    layers = {name: copy.deepcopy(model.model.layers[0]).to(getattr(torch, name))
              for name in seconds}
    for _ in range(4):
        for name, layer in layers.items():
            x = torch.randn(8, tokens // 8, model.config.hidden_size, requires_grad=True,
                            dtype=getattr(torch, name), device=model.lm_head.weight.device)
            start = time.perf_counter()
            layer(x).float().sum().backward()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return min(seconds, key=lambda name: min(seconds[name]))


# Processes: torchrun starts several, and each works on its share of a step's examples


def place() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Each gradient becomes its sum over the processes, all of them in one message.

    Only what is trained has a gradient: this is where an adapter saves the network's time.
    """
    if dist.is_initialized():
        flat = summed(torch.cat([p.grad.flatten() for p in parameters]))
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad.copy_(part.view_as(parameter))


# A step


def shares(examples: list[Example], micro_batch: int) -> list[list[Example]]:
    """This process's share of a step's examples, in forward passes of `micro_batch`."""
    rank, processes = place()
    mine = examples[rank::processes]
    return [mine[i:i + micro_batch] for i in range(0, len(mine), micro_batch)]


def accumulate(model: nn.Module, examples: list[Example], micro_batch: int,
               logits_of: Callable = shared_logits) -> tuple[float, int]:
    """Add the gradient of a step's loss to .grad; (the loss in nats per labelled token, tokens)."""
    device = next(model.parameters()).device
    n_labelled = sum(label != IGNORE for _, labels in examples for label in labels)
    total = torch.zeros((), device=device)
    for part in shares(examples, micro_batch):
        logits, targets = logits_of(model, collate(part, device))
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / n_labelled
        loss.backward()
        total += loss.detach()
    return summed(total).item(), sum(len(ids) for ids, _ in examples)


@torch.no_grad()
def validate(model: nn.Module, examples: list[Example], micro_batch: int) -> dict[str, float]:
    """Loss in nats per labelled token, and exact match: the share of examples answered right."""
    device, training, _ = next(model.parameters()).device, model.training, model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)   # losses, labels, exact answers
    for part in shares(examples, micro_batch):
        input_ids, labels = collate(part, device)
        logits, targets = shared_logits(model, (input_ids, labels))
        right = answered_right(logits, targets, labels).sum()
        sums += torch.tensor([F.cross_entropy(logits.float(), targets, reduction="sum").item(),
                              len(targets), right.item()], device=device)
    model.train(training)
    loss, n_labelled, exact = summed(sums).tolist()
    return {"loss": loss / n_labelled, "exact_match": exact / len(examples)}


# A run


class Run:
    """A model in training and the folder it is kept in: steps, validations, checkpoints."""

    def __init__(self, model: nn.Module, recipe: Recipe, schedule: Schedule, folder: Path):
        self.model, self.recipe, self.schedule, self.folder = model, recipe, schedule, folder
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.config = TrainConfig(recipe.lr)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=recipe.lr, weight_decay=0.0,
                                           betas=self.config.betas)
        self.history = {"loss": [], "grad_norm": [], "tokens": [], "seconds": [], "validation": []}

    @property
    def done(self) -> int:
        return len(self.history["loss"])

    def step(self, examples: list[Example]) -> None:
        """One AdamW step; FloatingPointError, before anything has changed, if it is not finite."""
        start, parameters = time.perf_counter(), list(self.trained.values())
        self.optimizer.param_groups[0]["lr"] = self.config.lr_at(self.done, self.schedule.steps)
        # layers that compute again would fill the shared tokens' caches twice
        logits_of = labelled_logits if self.recipe.recompute else shared_logits
        loss, n_tokens = accumulate(self.model, examples, self.schedule.micro_batch, logits_of)
        reduce_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm).item()
        if not (loss < float("inf") and norm < float("inf")):
            raise FloatingPointError(
                f"step {self.done + 1}: the loss is {loss}, the gradient's norm {norm}; the last "
                f"checkpoint in {self.folder} is good. Try a learning rate below {self.recipe.lr:g}"
                + (" or dtype float32" if self.recipe.dtype != "float32" else ""))
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        for name, value in (("loss", loss), ("grad_norm", norm), ("tokens", n_tokens),
                            ("seconds", seconds)):
            self.history[name].append(value)

    def validate(self, examples: list[Example]) -> None:
        """Score the model, keep it if it is the best so far, and write a checkpoint."""
        scores = validate(self.model, examples, self.schedule.micro_batch)
        self.history["validation"].append({"step": self.done, **scores})
        if place()[0] == 0:
            if self.best()["step"] == self.done:
                save_trained(self.model, self.folder)
            self.save()

    def best(self) -> dict:
        return min(self.history["validation"], key=lambda scores: scores["loss"])

    def out_of_patience(self) -> bool:
        scores = self.history["validation"]
        return len(scores) - 1 - scores.index(self.best()) >= self.schedule.patience

    def save(self) -> None:
        """All that the next step depends on, in one file, so that it is whole or absent."""
        tensors = {"rng": torch.get_rng_state()}
        for name, parameter in self.trained.items():
            moments = self.optimizer.state[parameter]
            tensors |= {f"parameter.{name}": parameter.detach(),
                        **{f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}}
        write_checkpoint(self.folder, tensors, self.history)

    @torch.no_grad()
    def restore(self) -> None:
        """Continue where `save` was called last; the next steps are bitwise those of that run."""
        saved = read_checkpoint(self.folder)
        if saved is None:
            return                                      # killed before the first checkpoint
        tensors, self.history = saved
        state = {}
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
