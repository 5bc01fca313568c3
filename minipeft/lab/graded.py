"""The task of languages in full: fast, flat, and at equal numbers of trained parameters.

    python -m minipeft compare --graded     a line a run in OUT/graded.jsonl (hours)

What is learned in 200 steps is speed. What an arm can hold shows where more steps add nothing: it
is trained anew for 400, 800, 1600, 3200 steps, until the share of the bits, mean of its seeds,
gains less than a point. (An arm that has not begun to learn goes on to the end.)
"""
import math
import statistics
from pathlib import Path

from ..recipes import RECIPES
from .rates import SWEEP_SEEDS, choose, learning_rate, record, scores
from .runs import JOB, RECORD, STEPS, Job
from .study import Progress, read_lines, run_study

LINES = "graded.jsonl"           # in the folder of the study
VERSION = 1                      # of it, see study.py
FAST = STEPS["languages"]
FAST_SEEDS = range(6)            # one seed moves an arm by tens of points at this budget
OTHER_SEEDS = range(3)           # of other sizes
DOUBLED = (400, 800, 1600, 3200)
DOUBLED_SEEDS = range(3)
TRIED = DOUBLED[0]               # steps at which the rate of all doubled runs is chosen
TRIED_SEEDS = SWEEP_SEEDS[:2]    # on these seeds, for them and for other sizes,
BELOW, ABOVE = 2, 1              # from so many notches below the rate of FAST, and above; a smaller
                                 # adapter may want any larger one
GAIN = 0.01                      # a curve that gains less in a doubling is flat,
BEGUN = 0.05                     # if it has begun to rise

EQUAL = {16_000: (("lora", 1), ("lora", 2), ("prefix", 16), ("houlsby", 7)),     # trained, about:
         80_000: (("lora", 8), ("prefix", 80), ("houlsby", 39))}                 # (arm, size)
OTHER_SIZES = [(arm, size) for arms in EQUAL.values() for arm, size in arms
               if size != RECIPES[arm].size]

Arm = tuple[str, int | None, str]     # a key of RECIPES, the size (None: the recipe's), the task


def study(out: Path, workers: int, progress: Progress | None = None) -> list[dict]:
    """Every run of the study, those in `out` not done again; returns their records."""
    def runs(jobs: list[Job], what: str) -> list[dict]:
        lines = run_study(jobs, scores, out / LINES, VERSION, workers, progress, what,
                          RECORD)
        return [record(line) for line in lines]

    def sweep(arms: list[Arm], steps: int, what: str, above: int | None, solved: float
              ) -> dict[Arm, float]:
        found = runs([Job(arm, task, seed, lr, steps, "sweep", size) for arm, size, task in arms
                      for lr in around(RECIPES[arm].grid, learning_rate(arm, task), above)
                      for seed in TRIED_SEEDS], what)
        return {arm: choose([r for r in found if (r["arm"], r["size"], r["task"]) == arm], solved)
                for arm in arms}

    def report(rates: dict[Arm, float], steps: int, seeds: range, what: str) -> None:
        runs([Job(arm, task, seed, lr, steps, size=size)
              for (arm, size, task), lr in rates.items() for seed in seeds], what)

    usual = [(arm, None, "languages") for arm in RECIPES]
    report({arm: learning_rate(arm[0], "languages") for arm in usual}, FAST, FAST_SEEDS,
           f"{FAST} steps")
    growing = sweep(usual, TRIED, f"rates for {TRIED} steps and more", ABOVE, math.inf)
    for steps in DOUBLED:
        report(growing, steps, DOUBLED_SEEDS, f"{steps} steps")
        growing = {arm: lr for arm, lr in growing.items() if not flat(read(out), arm[0], steps)}
    others = [(arm, size, "languages") for arm, size in OTHER_SIZES] + [("lora", 1, "novel")]
    report(sweep(others, FAST, "rates of other sizes", None, 0.99), FAST, OTHER_SEEDS,
           f"{FAST} steps, other sizes")
    return read(out)


def around(grid: tuple[float, ...], lr: float, above: int | None) -> tuple[float, ...]:
    """BELOW rates of the grid below `lr`, itself, and so many above it; None: all."""
    i = grid.index(lr)
    return grid[max(i - BELOW, 0):None if above is None else i + above + 1]


def read(out: Path) -> list[dict]:
    """The records of the finished runs in the folder."""
    return [record(line)
            for line in read_lines(out / LINES, VERSION, RECORD | {"job": JOB}).values()]


def learned(runs: list[dict], arm: str, steps: int, size: int | None = None) -> list[float]:
    """Shares of the bits of the languages that report, a seed each, in the order of the seeds."""
    found = {r["seed"]: r["share"] for r in runs if r["split"] == "report"
             and (r["arm"], r["task"], r["steps"], r["size"]) == (arm, "languages", steps, size)}
    return [found[seed] for seed in sorted(found)]


def stored_size(arm: str, size: int) -> int | None:
    """The size as a job has it: None is the recipe's own."""
    return None if size == RECIPES[arm].size else size


def flat(runs: list[dict], arm: str, steps: int) -> bool:
    """Whether the last doubling, to `steps`, gave the arm's seeds less than GAIN in the mean."""
    before, now = learned(runs, arm, steps // 2), learned(runs, arm, steps)
    if not (before and now) or statistics.mean(now) < BEGUN:
        return False
    both = list(zip(before, now))              # the same seeds: 200 steps have more of them
    return statistics.mean(b - a for a, b in both) < GAIN


def at_the_end(runs: list[dict], arm: str) -> tuple[int, list[float], bool]:
    """(most steps that the arm was given, its shares then, whether it was flat)."""
    steps = max((s for s in DOUBLED if learned(runs, arm, s)), default=FAST)
    return steps, learned(runs, arm, steps), flat(runs, arm, steps)
