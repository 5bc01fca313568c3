"""What a method costs: parameters, bytes, seconds. Bytes are counted, not estimated.

    training bytes = weights + gradients + optimizer + activations

Weights, gradients and AdamW's two moments are summed over the tensors that exist after one real
step; activations over the tensors that autograd saved for the backward pass, each storage once,
parameters and buffers left out. Peaks inside an operation are not in these counts.
"""
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .train import Batch, batch_loss


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`: views and tied weights count once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes at the end of the forward pass of a training step, by kind."""

    weights: int        # parameters and buffers, frozen ones and the adapter's
    gradients: int
    optimizer: int      # AdamW: two moments a trainable number
    activations: int    # saved by autograd for the backward pass

    as_dict = asdict

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, tied ones once; also on the meta device."""
    return nbytes([*model.parameters(), *model.buffers()])


def saved_tensors(model: nn.Module, forward: Callable) -> tuple[list[Tensor], object]:
    """(what autograd keeps for the backward pass of `forward()`, what that returned); the model's
    own parameters and buffers are left out."""
    held = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved = []      # the storages' own tensors, so that none is freed and its address reused;
    # detached, or an operation that keeps its own result would keep itself alive for ever
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.detach()) or saved[-1], lambda t: t):
        result = forward()
    return [t for t in saved if t.untyped_storage()._cdata not in held], result


def saved_activations(model: nn.Module, batch: Batch) -> tuple[int, Tensor]:
    """(bytes that autograd keeps for the backward pass, the loss)."""
    saved, loss = saved_tensors(model, lambda: batch_loss(model, batch))
    return nbytes(saved), loss


def training_bytes(model: nn.Module, batch: Batch) -> TrainingBytes:
    """Counted on one AdamW step with learning rate 0: the weights stay as they are."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    activations, loss = saved_activations(model, batch)
    loss.backward()
    gradients = nbytes(p.grad for p in parameters)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    optimizer.zero_grad()
    return TrainingBytes(weight_bytes(model), gradients, nbytes(moments), activations)


@dataclass(frozen=True)
class Timing:
    """Median and quartiles over the rounds: of seconds, or of ratios."""

    median: float
    low: float
    high: float

    as_dict = asdict


def interleaved(calls: dict[str, Callable], rounds: int = 15, warmup: int = 2,
                progress: Callable[[Iterable], Iterable] | None = None) -> dict[str, Timing]:
    """Seconds of each call, timed in turn, see `in_turn`."""
    return {name: summary(values)
            for name, values in in_turn(calls, rounds, warmup, progress).items()}


def in_turn(calls: dict[str, Callable], rounds: int = 15, warmup: int = 2,
            progress: Callable[[Iterable], Iterable] | None = None) -> dict[str, list[float]]:
    """Time each call once a round, so that a drift of the machine hits all alike: the seconds of
    every round."""
    seconds = {name: [] for name in calls}
    numbered = range(warmup + rounds)
    for number in (progress(numbered) if progress else numbered):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            synchronize()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], to: list[float]) -> Timing:
    """How many times as long as another call of the same round."""
    return summary([a / b for a, b in zip(seconds, to)])


def synchronize() -> None:
    """Wait for a GPU's queue, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(values: list[float]) -> Timing:
    low, _, high = statistics.quantiles(values, n=4)
    return Timing(statistics.median(values), low, high)
