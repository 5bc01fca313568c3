"""One training loop for every method: it trains whatever has `requires_grad`.

    loss = mean over labelled positions of -log p(label | the tokens before it)

A batch is (input_ids, labels), both (B, T) int64, under HuggingFace's convention: labels are not
shifted, and -100 marks a position whose prediction does not count.
"""
import inspect
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import torch
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
        if not self.lr > 0 or self.warmup_steps < 0 or not 0 <= self.flat < 1:
            raise ValueError(f"TrainConfig wants lr > 0, warmup_steps >= 0, 0 <= flat < 1: {self}")

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


@torch.no_grad()
def evaluate(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """(loss in nats per labelled token, exact match: the share of rows answered right), in
    evaluation mode."""
    training, _ = model.training, model.eval()
    logits, targets = labelled_logits(model, batch)
    model.train(training)
    right = answered_right(logits, targets, batch[1])
    return F.cross_entropy(logits.float(), targets).item(), right.float().mean().item()


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
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas,
                                  weight_decay=config.weight_decay)
    history = History()
    model.train()
    numbered = zip(range(steps), batches)
    for step, batch in (progress(numbered) if progress else numbered):
        optimizer.param_groups[0]["lr"] = config.lr_at(step, steps)
        train_step(model, batch, optimizer, parameters, config, history)
    if len(history.loss) < steps:
        raise ValueError(f"train wants {steps} batches, got {len(history.loss)}")
    return history


def train_step(model, batch, optimizer, parameters, config: TrainConfig, history: History) -> None:
    start = time.perf_counter()
    loss = batch_loss(model, batch)
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()} at step {len(history.loss)}; "
                                 f"try a learning rate below {config.lr:g}")
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    history.loss.append(loss.item())
    history.grad_norm.append(norm.item())
    history.seconds.append(time.perf_counter() - start)
