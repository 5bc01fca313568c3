"""Every method on the same tasks, budget, seeds and bases, each at its own swept learning rate.

    arm x task x seed -> one run: train, score on the report prompts, measure forgetting, unload
    arm               -> its costs, measured alone afterwards, calls interleaved
    arm               -> the same configuration at Llama-2-7B's shapes, exact, on the meta device

Runs are independent processes of one thread. Each is written to a file when it is done, under a
hash of the code, the base and the configuration, so that an interrupted comparison is resumed.
"""
import contextlib
import copy
import hashlib
import itertools
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..files import read_json, write_json
from ..gpt import GPT, GPTConfig, KVCache
from ..measure import in_turn, interleaved, ratio, summary, training_bytes, weight_bytes
from ..peft_model import PeftModel, count_parameters
from ..prefix import PrefixAttention
from ..prompt import SoftPrompt
from ..recipes import RECIPES, adapt
from ..tiny_world import documents
from ..tiny_world.pretrain import load_base, read_record
from ..train import batch_loss
from .rates import learning_rate, stored_means
from .runs import BATCH, STEPS, Job, base_seed, check_record, run, task_of
from .sources import sources
from .study import Progress, in_processes

AGAIN = "the run is done again"


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


def is_finished(job: Job, path: Path) -> bool:
    """Whether that file holds a run of that job; a warning if it holds anything else."""
    if not path.exists():
        return False
    try:
        record = read_json(path, AGAIN)
        check_record(record, str(path), AGAIN)
        if any(record[name] != value for name, value in asdict(job).items()):
            raise ValueError(f"{path} is of another run; {AGAIN}")
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return False
    return True


# ---------------------------------------------------------------- costs

TEXT = 64                # tokens of the text when a call is timed
LONG = (8, 192)          # rows and tokens of a training step: far more tokens than virtual ones
ROWS = (1, 32)           # rows when a call is timed
PHASES = ("prefill", "decode")


# For glibc. Given back to the system after each call, memory costs page faults or not by what else
# the heap holds, which can double the time of a decode step of 32 rows.
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def costs(methods: list[str], rounds: int, progress: Progress | None = None) -> dict[str, dict]:
    """Parameters, bytes and seconds of each arm on the base of seed 0, in a process of one thread.

    latency: "form, phase, rows" -> median and quartiles of the seconds and of the ratios, round by
    round, to the unadapted model. prefill: a text of TEXT tokens; decode: one token more, its keys
    and values in a cache. A form is `as trained`; `merged`; or `cached`: the unadapted model, with
    the keys and values of a prompt or a prefix in its caches, as a server would keep them.
    """
    result = {arm: {"latency": {}} for arm in methods}
    before = dict(os.environ)
    os.environ.update(HEAP)                              # read when a process starts
    try:
        for latency, found in in_processes(partial(costs_of, methods, rounds),
                                           [None, *itertools.product(PHASES, ROWS)], 1, progress,
                                           "costs"):
            for arm in methods:
                (result[arm]["latency"] if latency else result[arm]).update(found[arm])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return result


def costs_of(methods: list[str], rounds: int, call: tuple[str, int] | None) -> tuple[bool, dict]:
    """(whether it is latency, what was found of each arm): a training step, or a phase and rows."""
    models = {arm: adapt(load_base(0), arm) for arm in methods}
    if call is None:
        batch = documents.pretraining_batch(0, 0, *LONG)
        steps = interleaved({arm: training_step(model, batch) for arm, model in models.items()},
                            rounds)
        return False, {arm: counted(model, batch) | dict(step=steps[arm].as_dict())
                       for arm, model in models.items()}
    phase, rows = call
    ids, _ = documents.pretraining_batch(0, 0, rows, TEXT + 1)                     # (rows, T + 1)
    seconds = in_turn({(arm, form): timed(phase, served, caches, ids) for arm in methods
                       for _, form, served, caches in forms(arm, models[arm].eval())}, rounds)
    found = {arm: {} for arm in methods}
    for (arm, form), values in seconds.items():
        found[arm][f"{form}, {phase}, {rows}"] = dict(
            seconds=summary(values).as_dict(),
            ratio=ratio(values, seconds["full", "as trained"]).as_dict())
    return True, found


Caches = list[tuple[torch.Tensor, torch.Tensor]]     # keys and values of one row, a pair a layer


def forms(arm: str, model: nn.Module) -> Iterator[tuple[str, str, nn.Module, Caches | None]]:
    """(arm, form, the model that is called, what its caches hold before the text)."""
    yield arm, "as trained", model, None
    if isinstance(model, PeftModel):
        with contextlib.suppress(TypeError):
            yield arm, "merged", adapt(load_base(0), arm).merge_and_unload().eval(), None
        if virtual := virtual_caches(model):
            yield arm, "cached", load_base(0).eval(), virtual


@torch.no_grad()
def virtual_caches(model: PeftModel) -> Caches | None:
    """Keys and values of a soft prompt or a prefix, (1, H_kv, P, D) each; None without either."""
    gpt = model.get_base_model()
    adapters = [*model.adapter_sets[model.active_adapter].values()]
    if isinstance(adapters[0], PrefixAttention):
        return [adapter.keys_and_values() for adapter in adapters]
    if isinstance(adapters[0], SoftPrompt):
        caches = [KVCache() for _ in gpt.model.layers]
        gpt.model(torch.zeros(1, 1, dtype=torch.long), caches)       # the prompt, and any token
        return [(cache.k[:, :, :-1], cache.v[:, :, :-1]) for cache in caches]
    return None


def timed(phase: str, model: nn.Module, virtual: Caches | None, ids: torch.Tensor) -> Callable:
    """The phase as a call without arguments, on caches that it finds as the last call did."""
    gpt = model.get_base_model() if isinstance(model, PeftModel) else model
    before = [KVCache() for _ in gpt.model.layers]
    for kept, (k, v) in zip(before, [] if virtual is None else virtual):
        kept.k, kept.v = (t.expand(len(ids), -1, -1, -1).contiguous() for t in (k, v))
    if phase == "decode":
        with torch.no_grad():
            model(ids[:, :-1], caches=before)
    new = ids[:, -1:] if phase == "decode" else ids[:, :-1]

    @torch.no_grad()
    def call() -> torch.Tensor:
        return model(new, caches=[copy.copy(kept) for kept in before])           # (rows, T, V)
    return call


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
                   sweep=[found for found in stored_means()
                          if found["task"] in tasks and found["arm"] in methods],
                   floors={task: task_of(task, 0).floors for task in tasks})
    write_json(out / "compare.json", results)
    return results
