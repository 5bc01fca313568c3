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
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..files import read_json, write_json
from ..gpt import GPT, GPTConfig
from ..measure import interleaved, training_bytes, weight_bytes
from ..peft_model import PeftModel, count_parameters
from ..recipes import RECIPES, adapt
from ..tiny_world import documents
from ..tiny_world.pretrain import load_base, read_record
from ..tiny_world.tasks import TASKS
from ..train import batch_loss
from .rates import learning_rate
from .runs import BATCH, STEPS, Job, base_seed, run, task_of
from .sources import sources
from .study import Progress, in_processes


def key(job: Job) -> str:
    """A hash of everything that the result of a run depends on."""
    base = read_record()[str(base_seed(job.seed))]["sha256"]
    recipe = RECIPES[job.arm]
    made = repr(recipe.config and recipe.config(recipe.size)), recipe.four_bit
    text = json.dumps([asdict(job), made, base, code_hash()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_hash() -> str:
    """Of the sources that a run executes: this file and all that it imports."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources(Path(__file__)))).hexdigest()


def run_and_store(job_and_path: tuple[Job, Path]) -> None:
    job, path = job_and_path
    write_json(path, asdict(job) | run(job))


def run_all(jobs: list[Job], folder: Path, workers: int, progress: Progress | None) -> list[dict]:
    """The records of all jobs, in order; those in `folder` are read, the others computed, and so
    are, with a warning, those whose file is damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {job: folder / f"{key(job)}.json" for job in jobs}
    missing = [(job, path) for job, path in paths.items() if not is_finished(job, path)]
    missing.sort(key=lambda pair: -pair[0].steps)            # the long ones first
    for _ in in_processes(run_and_store, missing, workers, progress):
        pass
    return [read_json(paths[job]) for job in jobs]


RECORD = {"trainable": int, "loss": (float, type(None)), "exact_match": (float, int),
          "share": (float, int)}


def is_finished(job: Job, path: Path) -> bool:
    """Whether that file holds a run of that job; a warning if it holds anything else."""
    if not path.exists():
        return False
    try:
        record = read_json(path, "the run is done again", keys=RECORD)
        if any(record.get(name) != value for name, value in asdict(job).items()):
            raise ValueError(f"{path} is of another run; the run is done again")
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return False
    return True


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
                   batch=BATCH, runs=runs, costs=costs(methods, rounds, progress),
                   full_size={arm: at_full_size(arm) for arm in methods},
                   floors={task: task_of(task, 0).floors for task in tasks})
    write_json(out / "compare.json", results)
    return results
