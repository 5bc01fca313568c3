"""Every method on the same tasks, budget, seeds and bases, each at its own swept learning rate.

    arm x task x seed -> one run: train, score on the report prompts, measure forgetting, unload
    arm               -> its costs, measured alone afterwards, one thread, calls interleaved
    arm               -> the same configuration at Llama-2-7B's shapes, exact, on the meta device

Runs are independent processes of one thread. Each is written to a file when it is done, under a
hash of the code, the base and the configuration, so that an interrupted comparison is resumed.
"""
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..files import DATA, read_json, write_json
from ..gpt import GPT, GPTConfig
from ..measure import interleaved, training_bytes, weight_bytes
from ..peft_model import PeftModel, count_parameters
from ..recipes import RECIPES, adapt
from ..tiny_world import documents
from ..tiny_world.pretrain import load_base, read_record
from ..tiny_world.tasks import TASKS
from ..train import TrainConfig, batch_loss, evaluate, train
from .sources import sources

STEPS = {"elicit": 60, "novel": 200}
BATCH = 32                                      # examples a step
PROMPTS = 256                                   # held-out prompts a score is taken on
KEPT = ("story", "facts", "ferry")              # kinds of document that no task redefines
LEARNING_RATES = DATA / "learning_rates.json"   # from `python -m minipeft compare --sweep`
Progress = Callable[..., Iterable]              # as tqdm: (iterable, total=, desc=)


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class Job:
    arm: str
    task: str
    seed: int                # of the adapter, the order of the data, and (modulo their number) base
    lr: float
    steps: int
    split: str = "report"    # the held-out prompts it is scored on

    def key(self) -> str:
        """A hash of everything that the result depends on."""
        base = read_record()[str(base_seed(self.seed))]["sha256"]
        recipe = RECIPES[self.arm]
        made = repr(recipe.config and recipe.config(recipe.size)), recipe.four_bit
        text = json.dumps([asdict(self), made, base, code_hash()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def base_seed(seed: int) -> int:
    return seed % len(read_record())


@cache
def code_hash() -> str:
    """Of the sources that a run executes: this file and all that it imports."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources(Path(__file__)))).hexdigest()


def kept_losses(model: nn.Module) -> dict[str, float]:
    """Loss on held-out pretraining documents, nats per token, by kind."""
    return {kind: evaluate(model, documents.validation(kind)[:2])[0] for kind in KEPT}


def run(job: Job) -> dict:
    """Train one arm on one task and score it; a diverged run has loss None."""
    torch.manual_seed(job.seed)
    task = TASKS[job.task]
    before = read_record()[str(base_seed(job.seed))]["validation"]      # scored when it was shipped
    model = adapt(load_base(base_seed(job.seed)), job.arm)
    frozen = {key: t.clone() for key, t in bare(model).items()}
    record = asdict(job) | dict(trainable=count_parameters(model)[0], loss=None, exact_match=0.0)
    try:
        history = train(model, task.batches(job.steps, BATCH, job.seed), TrainConfig(lr=job.lr),
                        job.steps)
    except FloatingPointError:
        return record
    loss, exact_match = evaluate(model, task.prompts(PROMPTS, job.split))
    after = kept_losses(model)
    restored = bare(model)
    return record | dict(
        loss=loss, exact_match=exact_match, history=history.loss,
        forgetting={kind: after[kind] - before[kind]["loss"] for kind in KEPT},
        restored=all(torch.equal(restored[key], frozen[key]) for key in frozen))


def bare(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the model below the adapters: what `unload` would give back."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    with model.disable_adapter():
        return model.base_model.state_dict()


# ---------------------------------------------------------------- many runs


def start_worker() -> None:
    """One thread a process, and no denormals, before the first tensor operation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C is the parent's to answer
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


def run_and_store(job_and_path: tuple[Job, Path]) -> dict:
    job, path = job_and_path
    record = run(job)
    write_json(path, record)
    return record


def run_all(jobs: list[Job], folder: Path, workers: int, progress: Progress | None) -> list[dict]:
    """The records of all jobs, in order; those in `folder` are read, the others computed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {job: folder / f"{job.key()}.json" for job in jobs}
    missing = [(job, path) for job, path in paths.items() if not path.exists()]
    if missing:
        missing.sort(key=lambda pair: -pair[0].steps)        # the long ones first
        with multiprocessing.get_context("spawn").Pool(min(workers, len(missing)),
                                                       start_worker) as pool:
            results = pool.imap_unordered(run_and_store, missing)
            bar = progress(results, total=len(missing), desc="runs") if progress else results
            for _ in bar:
                pass
    return [read_json(paths[job], "delete it, and the run is done again") for job in jobs]


def learning_rate(arm: str, task: str) -> float:
    """The arm's rate from the stored sweep; FileNotFoundError says how to make one."""
    if not LEARNING_RATES.exists():
        raise FileNotFoundError(f"no sweep at {LEARNING_RATES}; make it with: "
                                f"python -m minipeft compare --sweep")
    chosen = read_json(LEARNING_RATES)["chosen"]
    if arm not in chosen.get(task, {}):
        raise ValueError(f"{LEARNING_RATES} has no rate for {arm} on {task}; the sweep that made "
                         f"it left it out: python -m minipeft compare --sweep takes all")
    return chosen[task][arm]


def choose(runs: list[dict], solved: float = 0.99) -> float:
    """The smallest learning rate that solves the task, else the one with the lowest loss.

    Smallest, because every method forgets more at larger rates: speed beyond need is not rewarded.
    """
    by_lr: dict[float, list[dict]] = {}
    for record in runs:
        by_lr.setdefault(record["lr"], []).append(record)
    solving = [lr for lr, group in by_lr.items()
               if statistics.mean(r["exact_match"] for r in group) >= solved]
    mean_loss = {lr: statistics.mean(math.inf if r["loss"] is None else r["loss"] for r in group)
                 for lr, group in by_lr.items()}
    return min(solving) if solving else min(mean_loss, key=mean_loss.get)


def sweep(methods: list[str], tasks: list[str], seeds: int, folder: Path, workers: int,
          progress: Progress | None = None) -> dict:
    """Every rate of every arm's grid, scored on the sweep prompts, and the choice."""
    jobs = [Job(arm, task, seed, lr, STEPS[task], "sweep") for task in tasks for arm in methods
            for lr in RECIPES[arm].grid for seed in range(seeds)]
    runs = run_all(jobs, folder, workers, progress)
    for record in runs:
        record.pop("history", None)
    chosen = {task: {arm: choose([r for r in runs if (r["arm"], r["task"]) == (arm, task)])
                     for arm in methods} for task in tasks}
    return dict(rule=choose.__doc__.strip().splitlines()[0], seeds=seeds, chosen=chosen, runs=runs)


# ---------------------------------------------------------------- costs


def costs(methods: list[str], rounds: int, progress: Progress | None = None) -> dict[str, dict]:
    """Parameters, bytes and seconds of each arm, on the base of seed 0, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = {arm: adapt(load_base(0), arm) for arm in methods}
        batch = next(TASKS["novel"].batches(1, BATCH, 0))
        result = {arm: counted(model, batch) for arm, model in models.items()}
        steps = interleaved({arm: training_step(model, batch) for arm, model in models.items()},
                            rounds, progress=progress and partial(progress, desc="time a step"))
        ready = {(arm, "as trained"): model.eval() for arm, model in models.items()}
        ready |= {(arm, "merged"): model for arm in methods if (model := merged(arm))}
        for rows in (1, 32):
            ids, _ = documents.pretraining_batch(0, 0, rows)                   # (rows, 64)
            timings = interleaved({key: forward(model, ids) for key, model in ready.items()},
                                  rounds, progress=progress and partial(
                                      progress, desc=f"time batch {rows}"))
            for (arm, form), timing in timings.items():
                result[arm].setdefault("latency", {})[f"{form}, batch {rows}"] = timing.as_dict()
        for arm in methods:
            result[arm]["step"] = steps[arm].as_dict()
    finally:
        torch.set_num_threads(threads)
    return result


def merged(arm: str) -> nn.Module | None:
    """A fresh base with the method merged into plain layers; None where that cannot be."""
    model = adapt(load_base(0), arm)
    with contextlib.suppress(TypeError):
        return model.merge_and_unload().eval() if isinstance(model, PeftModel) else None


def counted(model: nn.Module, batch) -> dict:
    trainable, total = count_parameters(model)
    return dict(trainable=trainable, parameters=total, file_bytes=file_bytes(model),
                bytes=training_bytes(model, batch).as_dict())


def file_bytes(model: nn.Module) -> int:
    """What a fine-tuned task takes on disk: the adapter's tensors, or the whole model."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, PeftModel):
            model.save_pretrained(folder)
        else:
            save_file(model.state_dict(), Path(folder) / "adapter_model.safetensors")
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def training_step(model: nn.Module, batch) -> Callable[[], None]:
    """A step with learning rate 0: the time of forward, backward and AdamW, the weights kept."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def step():
        batch_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def forward(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    def call():
        with torch.no_grad():
            model(ids)
    return call


def at_full_size(arm: str, preset: str = "llama-2-7b") -> dict:
    """Counts and static bytes at a real model's shapes, exact, without allocating it.

    bf16 base (NF4 for QLoRA), float32 adapters. A trained number takes 16 bytes in all: weight 2,
    gradient 2, float32 master copy and two moments 12; or 4 + 4 + 8 for a float32 adapter.
    """
    with torch.device("meta"):
        base = GPT(GPTConfig.preset(preset)).to(torch.bfloat16)
    model = adapt(base, arm)
    trainable, total = count_parameters(model)
    per_weight, in_file = (12, 4) if isinstance(model, PeftModel) else (14, 2)
    return dict(preset=preset, trainable=trainable, parameters=total, weights=weight_bytes(model),
                gradients_and_optimizer=per_weight * trainable, file_bytes=in_file * trainable)


# ---------------------------------------------------------------- the whole


def machine() -> dict:
    return dict(platform=platform.platform(terse=True), processor=platform.machine(),
                cores=os.cpu_count(), python=platform.python_version(), torch=torch.__version__,
                instructions=torch.backends.cpu.get_cpu_capability())


def compare(methods: list[str], tasks: list[str], seeds: int, out: Path, workers: int,
            rounds: int = 25, progress: Progress | None = None) -> dict:
    """Run, measure and write `out`/compare.json; returns what it holds."""
    jobs = [Job(arm, task, seed, learning_rate(arm, task), STEPS[task])
            for task in tasks for arm in methods for seed in range(seeds)]
    runs = run_all(jobs, out / "runs", workers, progress)
    results = dict(machine=machine(), seeds=seeds, methods=methods, tasks=tasks, steps=STEPS,
                   batch=BATCH, prompts=PROMPTS, runs=runs, costs=costs(methods, rounds, progress),
                   full_size={arm: at_full_size(arm) for arm in methods},
                   floors={task: TASKS[task].floors for task in tasks})
    write_json(out / "compare.json", results)
    return results
