"""One training step for every method and model: it trains whatever has `requires_grad`.

    loss = sum over a step's labelled tokens of -log p(token | the tokens before it) / their number

A batch is (input_ids, labels), both (B, T) int64, under HuggingFace's convention: labels are not
shifted, and -100 marks a position whose prediction does not count.

The gradient of that sum may be collected over several forward passes and several processes (as
torchrun starts them): each takes some parts of the step, and the sums of gradients are the gradient
of the sum.
"""
import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TrainConfig:
    lr: float                                  # peak learning rate of AdamW
    warmup_steps: int = 10                     # from 0 up to lr
    flat: float = 0.0                          # share of the steps that then stay at lr
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0                 # longer gradients are scaled to this norm

    def __post_init__(self):
        if (not 0 < self.lr < math.inf or not 0 <= self.warmup_steps < math.inf
                or not 0 <= self.flat < 1 or not 0 < self.max_grad_norm
                or not all(0 <= beta < 1 for beta in self.betas)
                or not 0 <= self.weight_decay < math.inf):
            raise ValueError(f"TrainConfig wants lr > 0, warmup_steps and weight_decay >= 0, all "
                             f"finite, 0 <= flat < 1, betas in [0, 1), max_grad_norm > 0: {self}")

    def lr_at(self, step: int, steps: int) -> float:
        """Warm-up, flat, then linear decay to 0 after the last of `steps`."""
        decay_from = max(self.warmup_steps, self.flat * steps)
        up = (step + 1) / (self.warmup_steps + 1)
        down = (steps - step) / max(steps - decay_from, 1)
        return self.lr * min(up, down, 1.0)


@dataclass
class History:
    """One entry a step."""

    loss: list[float] = field(default_factory=list)        # nats per labelled token
    grad_norm: list[float] = field(default_factory=list)   # before clipping
    seconds: list[float] = field(default_factory=list)

    as_dict = asdict


def offers_logits_at(model: nn.Module) -> bool:
    """Whether the model can compute its head on chosen positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_at" in inspect.signature(base.forward).parameters


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(whether position t predicts a labelled token, that token), (B, T) each."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)       # (B, T): position t predicts t + 1
    return targets != IGNORE, targets


def labelled_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (N, V) at the N positions whose next token is labelled, and those labels (N,)."""
    input_ids, labels = batch
    counted, targets = label_positions(labels)
    if offers_logits_at(model):
        return model(input_ids, logits_at=counted), targets[counted]
    return model(input_ids)[counted], targets[counted]


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over the labelled tokens, in nats."""
    logits, targets = labelled_logits(model, batch)
    return F.cross_entropy(logits.float(), targets)


def answered_right(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Whether each row's every labelled token is the likeliest, (B,); logits (N, V), targets (N,).

    Then, and only then, greedy decoding makes these tokens, at the price of one forward.
    """
    rows = (labels[:, 1:] != IGNORE).nonzero()[:, 0]           # (N,) the row of each labelled token
    wrong = torch.zeros(len(labels), dtype=torch.long, device=targets.device)
    return wrong.index_add_(0, rows, (logits.argmax(-1) != targets).long()) == 0


def check_labelled(n: Tensor) -> None:
    """ValueError unless there is a token to predict."""
    if not n:
        raise ValueError(f"a loss wants labelled tokens, got none: every label is {IGNORE}, or "
                         f"stands at a row's first position")


@torch.no_grad()
def evaluate(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """(loss in nats per labelled token, exact match: the share of rows answered right), in
    evaluation mode."""
    check_labelled(label_positions(batch[1])[0].sum())
    training, _ = model.training, model.eval()
    try:
        logits, targets = labelled_logits(model, batch)
    finally:
        model.train(training)
    right = answered_right(logits, targets, batch[1])
    return F.cross_entropy(logits.float(), targets).item(), right.float().mean().item()


# Processes


def place() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Each gradient becomes its sum over the processes, all of them in one message.

    Only what is trained has a gradient: this is where an adapter saves the network's time.
    """
    if dist.is_initialized():
        for parameter in parameters:
            if parameter.grad is None:                      # no part of the step has used it
                parameter.grad = torch.zeros_like(parameter)
        flat = summed(torch.cat([p.grad.flatten() for p in parameters]))
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad.copy_(part.view_as(parameter))


# A step


def accumulate(model: nn.Module, parts: list[Batch],
               logits_of: Callable = labelled_logits) -> float:
    """Add the gradient of a step's loss to .grad; the loss, in nats per labelled token.

    parts: this process's share of the step, a forward pass each
    """
    device = parts[0][0].device
    n_labelled = summed(sum((label_positions(labels)[0].sum() for _, labels in parts),
                            torch.zeros((), dtype=torch.long, device=device)))
    check_labelled(n_labelled)
    total = torch.zeros((), device=device)
    for part in parts:
        logits, targets = logits_of(model, part)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / n_labelled
        loss.backward()
        total += loss.detach()
    return summed(total).item()


def train_step(model: nn.Module, parts: list[Batch], optimizer: torch.optim.Optimizer,
               config: TrainConfig, step: int, steps: int,
               logits_of: Callable = labelled_logits) -> tuple[float, float]:
    """AdamW step number `step` of `steps`; (loss, norm of the gradient before clipping).

    FloatingPointError, before anything has changed, if loss or norm is not finite.
    """
    (group,) = optimizer.param_groups
    group["lr"] = config.lr_at(step, steps)
    optimizer.zero_grad()              # whatever an interrupted step or another loop has left
    loss = accumulate(model, parts, logits_of)
    reduce_gradients(group["params"])
    norm = nn.utils.clip_grad_norm_(group["params"], config.max_grad_norm).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad()
        raise FloatingPointError(
            f"step {step + 1}: the loss is {loss}, the gradient's norm {norm}; try a learning rate "
            f"below {config.lr:g}")
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas,
                             weight_decay=config.weight_decay)


def train(model: nn.Module, batches: Iterable[Batch], config: TrainConfig, steps: int,
          progress: Callable[[Iterable], Iterable] | None = None) -> History:
    """`steps` AdamW steps on what has `requires_grad`; `progress` may wrap the steps (tqdm).

    Raises ValueError if nothing is trainable or the batches run out, FloatingPointError if the loss
    stops being finite (the parameters are then those before the bad step).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("train wants a model with trainable parameters, got none with "
                         "requires_grad; adapt it with get_peft_model or unfreeze it")
    optimizer, history = adamw(parameters, config), History()
    model.train()
    numbered = zip(range(steps), batches)
    for step, batch in (progress(numbered) if progress else numbered):
        start = time.perf_counter()
        loss, norm = train_step(model, [batch], optimizer, config, step, steps)
        history.loss.append(loss)
        history.grad_norm.append(norm)
        history.seconds.append(time.perf_counter() - start)
    if len(history.loss) < steps:
        raise ValueError(f"train wants {steps} batches, got {len(history.loss)}")
    return history
