"""How many bits an adapter holds: more and more languages, until no more go in.

    python -m minipeft capacity         a line a run in OUT/capacity.jsonl (hours; goes on)

K new languages are K * 48 * log2 48 bits (tiny_world/languages.py), so what is stored can be
counted. Each arm learns K = 2, 8, 32, 64 and 128 of them, with twice as many steps again and again,
until the share of the bits gains less than a point, or the steps are at their end. Where the share
is flat below 1, the arm is full: its capacity. How many steps it took is its speed.
"""
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..lora import LoraConfig
from ..peft_model import count_parameters, get_peft_model
from ..recipes import RECIPES, adapt
from ..tiny_world.languages import Languages
from ..tiny_world.pretrain import load_base
from ..train import TrainConfig, train
from .graded import BEGUN, GAIN
from .rates import choose, loss_of, record
from .runs import BATCH, KEPT, NUMBER, base_seed, forgetting
from .study import Progress, Runs, read_lines

LINES = "capacity.jsonl"         # in the folder of the study
VERSION = 1                      # of it, see study.py
OFFERED = (2, 8, 32, 64, 128)    # numbers of languages K
MOST_STEPS = 12_800
SWEEP = 50                       # steps per language of a run that tries a rate
SWEEP_SEED = 100                 # its draw of languages is no draw of a report
SEEDS = range(3)                 # where some arm's knee is; elsewhere the first alone
KNEE = 0.1, 0.9                  # there the share at the end lies between these
RESULT = {"trainable": int, "loss": (*NUMBER, type(None)), "bits": NUMBER, "share": NUMBER}
JOB = {"arm": str, "K": int, "seed": int, "lr": NUMBER, "steps": int, "split": str}


@dataclass(frozen=True)
class Arm:
    label: str
    recipe: str                                  # its grid of rates and its look in pictures
    adapt: Callable[[nn.Module], nn.Module]
    start: float                                 # the first rate tried at K = 8


def lora_on(r: int, targets: list[str], model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r, 2 * r, target_modules=targets))


def arm(label: str, recipe: str, size: int | None, start: float) -> Arm:
    return Arm(label, recipe, partial(adapt, method=recipe, size=size), start)


# In the order in which they run: those that are full first.
ARMS = {
    "lora-1-qv": Arm("LoRA r = 1, q and v", "lora", partial(lora_on, 1, ["q_proj", "v_proj"]),
                     1e-2),
    "lora-1": arm("LoRA r = 1", "lora", 1, 3.2e-3),
    "lora-8-qv": Arm("LoRA r = 8, q and v", "lora", partial(lora_on, 8, ["q_proj", "v_proj"]),
                     5.6e-3),
    "lora-2": arm("LoRA r = 2", "lora", 2, 3.2e-3),
    "full": arm("FFT", "full", None, 1e-3),
    "houlsby-7": arm("Houlsby m = 7", "houlsby", 7, 1e-2),
    "lora-4": arm("LoRA r = 4", "lora", 4, 3.2e-3),
    "prefix-16": arm("Prefix P = 16", "prefix", 16, 0.1),
    "prompt-16": arm("Prompt P = 16", "prompt", 16, 0.1),
    "lora-8": arm("LoRA r = 8", "lora", 8, 3.2e-3),
    "houlsby-39": arm("Houlsby m = 39", "houlsby", 39, 1e-2),
    "lora-32": arm("LoRA r = 32", "lora", 32, 3.2e-3),
}


@dataclass(frozen=True)
class CapacityJob:
    arm: str                 # a key of ARMS
    K: int
    seed: int
    lr: float
    steps: int
    split: str = "report"    # or "sweep"; the seed has its own draw of languages

    def __post_init__(self):
        if self.arm not in ARMS:
            raise ValueError(f"unknown arm {self.arm!r}; known: {', '.join(ARMS)}")


def run(job: CapacityJob) -> dict:
    """What came out; a diverged run has loss None and stores nothing."""
    torch.manual_seed(job.seed)
    task = Languages(job.K, job.seed)
    model = ARMS[job.arm].adapt(load_base(base_seed(job.seed)))
    nothing = dict(trainable=count_parameters(model)[0], loss=None, bits=0.0, share=0.0)
    try:
        train(model, task.batches(job.steps, BATCH, job.seed), TrainConfig(lr=job.lr), job.steps)
    except FloatingPointError:
        return nothing
    scores, lost = task.score(model), forgetting(model, base_seed(job.seed))
    if not all(map(math.isfinite, (scores["loss"], *lost.values()))):
        return nothing                                  # the last step did it
    return nothing | scores | dict(forgetting={kind: lost[kind] for kind in KEPT})


def steps_at_first(K: int) -> int:
    """The fewest steps tried: each pair of a language and a word is then met about 33 times."""
    return round(12.5 * K)


def study(out: Path, workers: int, progress: Progress | None = None,
          arms: tuple[str, ...] = tuple(ARMS), offered: tuple[int, ...] = OFFERED,
          most_steps: int = MOST_STEPS, swept: list[dict] | None = None) -> list[dict]:
    """Every run of these arms and numbers of languages, those in `out` not done again; returns the
    records of all runs in `out`.

    swept: runs of an earlier study to take the rates from, and the first seed only; None: sweep
    """
    with Runs(run, out / LINES, VERSION, workers, RESULT) as runs:
        def more_steps(start: tuple[str, int, int]) -> None:
            name, K, seed = start
            lr = rate(records(runs) if swept is None else swept, name, K)
            for steps in doublings(K, most_steps):
                runs(CapacityJob(name, K, seed, lr, steps))
                if flat(records(runs), name, K, seed, steps):
                    break

        if swept is None:
            runs.chains(partial(sweep, runs, max(offered)), list(arms), progress, "rates")
        cells = list(itertools.product(arms, offered))
        runs.chains(more_steps, [(*cell, SEEDS[0]) for cell in cells], progress, "languages")
        knees = [cell for cell in cells if swept is None and knee(records(runs), *cell)]
        runs.chains(more_steps, [(*cell, seed) for seed in SEEDS[1:] for cell in knees], progress,
                    "other seeds")
        return records(runs)


def records(runs: Runs) -> list[dict]:
    return [record(line) for line in runs.lines()]


def doublings(K: int, most_steps: int = MOST_STEPS) -> list[int]:
    found = [steps_at_first(K)]
    while 2 * found[-1] <= most_steps:
        found.append(2 * found[-1])
    return found


def sweep(runs: Runs, most: int, name: str) -> None:
    """An arm's rates at K = 8, then around the best of them at K = 32, if so many are asked for."""
    sweep_at(runs, name, 8, ARMS[name].start)
    if most >= 32:
        sweep_at(runs, name, 32, best(tried(records(runs), name, 8)))


def sweep_at(runs: Runs, name: str, K: int, start: float) -> None:
    """Rates in notches of the recipe's grid around `start`, until the best of them has worse
    neighbours on both sides, or the grid ends."""
    grid = RECIPES[ARMS[name].recipe].grid
    middle = min(range(len(grid)), key=lambda i: abs(math.log(grid[i] / start)))
    while True:
        for i in range(max(middle - 1, 0), min(middle + 2, len(grid))):
            runs(CapacityJob(name, K, SWEEP_SEED, grid[i], SWEEP * K, "sweep"))
        at = grid.index(best(tried(records(runs), name, K)))
        if at == middle:
            return
        middle = at


def tried(runs: list[dict], name: str, K: int) -> list[dict]:
    """The runs of an arm's sweep at K languages."""
    return [r for r in runs if (r["arm"], r["K"], r["split"]) == (name, K, "sweep")]


def best(runs: list[dict]) -> float:
    return min(runs, key=loss_of)["lr"]


def rate(runs: list[dict], name: str, K: int) -> float:
    """The rate for K languages: chosen at the nearest K that was swept, by the rule of all sweeps
    (without its first clause: speed is not at stake here)."""
    swept = [at for at in (8, 32) if tried(runs, name, at)]
    if not swept:
        raise ValueError(f"no rate of {name!r} was tried; make the study without --quick first")
    nearest = min(swept, key=lambda at: abs(math.log(at / K)))
    return choose(tried(runs, name, nearest), solved=math.inf)


def read(out: Path) -> list[dict]:
    """The records of the finished runs in the folder."""
    return [record(line)
            for line in read_lines(out / LINES, VERSION, RESULT | {"job": JOB}).values()]


def curve(runs: list[dict], name: str, K: int, seed: int) -> dict[int, dict]:
    """steps -> the run that reports, in the order of the steps."""
    found = {r["steps"]: r for r in runs
             if (r["arm"], r["K"], r["seed"], r["split"]) == (name, K, seed, "report")}
    return dict(sorted(found.items()))


def flat(runs: list[dict], name: str, K: int, seed: int, steps: int) -> bool:
    """Whether the last doubling, to `steps`, gave less than GAIN to a share that has BEGUN."""
    found = curve(runs, name, K, seed)
    if steps // 2 not in found or steps not in found or found[steps]["share"] < BEGUN:
        return False
    return found[steps]["share"] - found[steps // 2]["share"] < GAIN


def ends(runs: list[dict], name: str, K: int) -> list[dict]:
    """A record a seed: the run with most steps, and `flat`."""
    found = []
    for seed in SEEDS:
        if steps := curve(runs, name, K, seed):
            last = max(steps)
            found.append(steps[last] | dict(flat=flat(runs, name, K, seed, last)))
    return found


def knee(runs: list[dict], name: str, K: int) -> bool:
    """Whether the first seed ended with a part of the bits, neither few nor nearly all."""
    first = ends(runs, name, K)[:1]
    return bool(first) and KNEE[0] <= first[0]["share"] <= KNEE[1]


def capacity(runs: list[dict], name: str) -> list[float]:
    """Bits per trained parameter where the arm is full: of each seed, the most that it stored of
    languages that it could not hold, in a run that is flat."""
    found: dict[int, float] = {}
    for K in OFFERED:
        for end in ends(runs, name, K):
            if end["flat"] and end["share"] < KNEE[1]:
                bits = end["bits"] / end["trainable"]
                found[end["seed"]] = max(bits, found.get(end["seed"], -math.inf))
    return [found[seed] for seed in sorted(found)]


def steps_to_half(runs: list[dict], name: str, K: int) -> float | None:
    """Steps that store half of the bits offered, between two doublings on a log scale; mean of the
    seeds' logarithms; None if some seed never got so far."""
    logs = [crossing(curve(runs, name, K, end["seed"])) for end in ends(runs, name, K)]
    return None if None in logs or not logs else math.exp(statistics.mean(logs))


def crossing(found: dict[int, dict]) -> float | None:
    """log of the steps at which the share passes one half; None if it does not, or did so before
    the first of them."""
    for (n, before), (m, now) in itertools.pairwise(found.items()):
        if before["share"] < 0.5 <= now["share"]:
            part = (0.5 - before["share"]) / (now["share"] - before["share"])
            return math.log(n) + part * math.log(m / n)
    return None
