"""Learning rates: every method tries its whole grid, and one rule takes one for each task.

    python -m minipeft compare --sweep      a line a run in OUT/sweep.jsonl, then the choice
"""
import math
import statistics
from pathlib import Path

from ..files import DATA, check_keys, read_json
from ..recipes import RECIPES
from .runs import STEPS, Job, run
from .study import Progress, run_study

LEARNING_RATES = DATA / "learning_rates.json"
LINES = "sweep.jsonl"           # in the folder of a sweep
SWEEP_SEEDS = (100, 101, 102)   # no seed of a report; each shipped base once
VERSION = 1                     # of the sweep, see study.py
TABLE = {"chosen": {}}


def learning_rate(arm: str, task: str) -> float:
    """The arm's rate from the stored sweep; an error says how to make one that has it."""
    again = "make it with: python -m minipeft compare --sweep"
    if not LEARNING_RATES.exists():
        raise FileNotFoundError(f"no sweep at {LEARNING_RATES}; {again}")
    chosen = read_json(LEARNING_RATES, again, keys=TABLE)["chosen"]
    if task in chosen:
        check_keys(chosen[task], {}, f"{LEARNING_RATES}: chosen: {task}", again)
    if arm not in chosen.get(task, {}):
        raise ValueError(f"the sweep in {LEARNING_RATES} has no rate of {arm!r} on {task!r}; "
                         f"{again} --methods {arm} --tasks {task}")
    check_keys(chosen[task], {arm: (float, int)}, f"{LEARNING_RATES}: chosen: {task}", again)
    return chosen[task][arm]


def choose(runs: list[dict], solved: float = 0.99) -> float:
    """The smallest learning rate that solves the task (99 %), else the one with the lowest loss.

    Smallest, because every method forgets more at larger rates: speed beyond need is not rewarded.
    """
    by_lr: dict[float, list[dict]] = {}
    for record in runs:
        by_lr.setdefault(record["lr"], []).append(record)
    solving = [lr for lr, group in by_lr.items()
               if statistics.mean(r["share"] for r in group) >= solved]
    mean_loss = {lr: statistics.mean(math.inf if r["loss"] is None else r["loss"] for r in group)
                 for lr, group in by_lr.items()}
    return min(solving) if solving else min(mean_loss, key=mean_loss.get)


def scores(job: Job) -> dict:
    """What a run gave, without its curve."""
    return {key: value for key, value in run(job).items() if key != "history"}


def sweep(methods: list[str], tasks: list[str], seeds: tuple[int, ...], out: Path, workers: int,
          progress: Progress | None = None) -> dict:
    """Every rate of every arm's grid on the seeds of the sweep, and the choice."""
    jobs = [Job(arm, task, seed, lr, STEPS[task], "sweep") for task in tasks for arm in methods
            for lr in RECIPES[arm].grid for seed in seeds]
    lines = run_study(jobs, scores, out / LINES, VERSION, workers, progress, "sweep")
    runs = [line["job"] | {key: value for key, value in line.items()
                           if key not in ("job", "version")} for line in lines]
    chosen = {task: {arm: choose([r for r in runs if (r["arm"], r["task"]) == (arm, task)])
                     for arm in methods} for task in tasks}
    return dict(rule=choose.__doc__.strip().splitlines()[0], chosen=chosen, runs=runs)


def with_stored(found: dict) -> dict:
    """A sweep together with what the stored one has of other arms and tasks: a whole table."""
    stored = (read_json(LEARNING_RATES, keys=TABLE | {"runs": list}) if LEARNING_RATES.exists()
              else dict(chosen={}, runs=[]))
    kept = [run for run in stored["runs"]
            if run["arm"] not in found["chosen"].get(run["task"], {})]
    tasks = [*stored["chosen"], *(task for task in found["chosen"] if task not in stored["chosen"])]
    return found | dict(runs=[*kept, *found["runs"]],
                        chosen={task: stored["chosen"].get(task, {}) | found["chosen"].get(task, {})
                                for task in tasks})
