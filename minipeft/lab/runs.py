"""One run of an experiment on the tiny GPT: train an arm on a task, score it, see what it forgot.

Each seed has a base, an adapter, an order of the data and, in the task of languages, languages of
its own. Sweeps use other seeds than reports, so no rate is chosen on what is reported.
"""
import math
import statistics
from dataclasses import dataclass

import torch
from torch import nn

from ..files import check_keys
from ..peft_model import PeftModel, count_parameters
from ..recipes import RECIPES, adapt
from ..tiny_world import documents
from ..tiny_world.languages import Languages
from ..tiny_world.pretrain import load_base, read_record
from ..tiny_world.tasks import TASKS, Task
from ..train import TrainConfig, evaluate, train

STEPS = {"elicit": 60, "novel": 200, "languages": 200}
BATCH = 32                                      # examples a step
K = 8                                           # languages of the task of that name
KEPT = ("story", "facts", "ferry")              # kinds of document that no task redefines
NUMBER = (float, int)
# What a record of a run must hold
RECORD = {"trainable": int, "loss": (*NUMBER, type(None)), "exact_match": NUMBER, "share": NUMBER}
JOB = {"arm": str, "task": str, "seed": int, "lr": NUMBER, "steps": int, "split": str,
       "size": (int, type(None))}


@dataclass(frozen=True)
class Job:
    arm: str                 # a key of RECIPES
    task: str                # a key of STEPS
    seed: int
    lr: float
    steps: int
    split: str = "report"    # the held-out prompts it is scored on; languages: the seed's
    size: int | None = None  # of the adapter; None: the recipe's

    def __post_init__(self):
        for name, value, known in ("arm", self.arm, RECIPES), ("task", self.task, STEPS):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def base_seed(seed: int) -> int:
    return seed % len(read_record())


def task_of(name: str, seed: int) -> Task | Languages:
    """The task as the runs of that seed meet it."""
    return Languages(K, seed) if name == "languages" else TASKS[name]


def run(job: Job) -> dict:
    """What came out; a diverged run has loss None and no further entries."""
    torch.manual_seed(job.seed)
    task = task_of(job.task, job.seed)
    model = adapt(load_base(base_seed(job.seed)), job.arm, job.size)
    frozen = {key: t.clone() for key, t in bare(model).items()}
    record = dict(trainable=count_parameters(model)[0], loss=None, exact_match=0.0, share=0.0)
    try:
        history = train(model, task.batches(job.steps, BATCH, job.seed), TrainConfig(lr=job.lr),
                        job.steps)
    except FloatingPointError:
        return record
    scores = task.score(model, job.split) if isinstance(task, Task) else task.score(model)
    lost = forgetting(model, base_seed(job.seed))
    if not all(map(math.isfinite, (scores["loss"], *lost.values()))):
        return record                                   # the last step did it
    restored = bare(model)
    return record | {"share": scores["exact_match"]} | scores | dict(
        history=history.loss, forgetting=lost, update_norm=update_norm(model, frozen),
        restored=all(torch.equal(restored[key], frozen[key]) for key in frozen))


def forgetting(model: nn.Module, base: int) -> dict[str, float]:
    """How much more each kind of document costs than under the base, nats per token."""
    before = read_record()[str(base)]["validation"]             # scored when it was shipped
    return {kind: evaluate(model, documents.validation(kind)[:2])[0] - before[kind]["loss"]
            for kind in documents.KINDS}


def check_record(record: dict, where: str, do: str) -> None:
    """ValueError, as check_keys', unless this is a job's fields and what `run` has given."""
    check_keys(record, JOB | RECORD, where, do)
    if record["loss"] is not None:
        check_keys(record, {"forgetting": dict.fromkeys(KEPT, NUMBER)}, where, do)


def forgotten(record: dict) -> float:
    """One number of a run: the rise on documents that no task redefines, mean of their kinds."""
    return statistics.mean(record["forgetting"][kind] for kind in KEPT)


def bare(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the model below the adapters: what `unload` would give back."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    with model.disable_adapter():
        return model.base_model.state_dict()


@torch.no_grad()
def update_norm(model: nn.Module, before: dict[str, torch.Tensor]) -> float | None:
    """Frobenius norm of what was added to the weights of the linears, all together; None for a
    method that adds something else."""
    if isinstance(model, PeftModel):
        adapters = model.adapter_sets[model.active_adapter].values()
        if not all(hasattr(adapter, "delta_weight") for adapter in adapters):
            return None
        updates = [adapter.delta_weight() for adapter in adapters]
    else:
        updates = [W - before[name] for name, W in model.state_dict().items()
                   if name.endswith("proj.weight")]
    return math.sqrt(sum(update.double().square().sum().item() for update in updates))

