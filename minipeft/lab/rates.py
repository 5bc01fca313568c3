"""Learning rates: every method tries its whole grid, and one rule takes one for each task.

    python -m minipeft compare --sweep      a line a run in OUT/sweep.jsonl, then the choice
"""
import itertools
import math
import statistics
from pathlib import Path

from ..files import DATA, check_keys, plain, read_json
from ..recipes import RECIPES
from .runs import NUMBER, RECORD, STEPS, Job, check_record, forgotten, run
from .study import Progress, run_study

LEARNING_RATES = DATA / "learning_rates.json"
LINES = "sweep.jsonl"           # in the folder of a sweep
SWEEP_SEEDS = (100, 101, 102)   # no seed of a report; each shipped base once
VERSION = 1                     # of the sweep, see study.py
AGAIN = "make it with: python -m minipeft compare --sweep"


def learning_rate(arm: str, task: str) -> float:
    """The arm's rate from the stored sweep; an error says how to make one that has it."""
    chosen = stored()["chosen"]
    if arm not in chosen.get(task, {}):
        raise ValueError(f"the sweep in {LEARNING_RATES} has no rate of {arm!r} on {task!r}; "
                         f"{AGAIN} --methods {arm} --tasks {task}")
    return chosen[task][arm]


def stored() -> dict:
    """The sweep that the chosen rates come from: rule, chosen, runs; ValueError for a table that
    is damaged anywhere."""
    if not LEARNING_RATES.exists():
        raise FileNotFoundError(f"no sweep at {LEARNING_RATES}; {AGAIN}")
    sweep = read_json(LEARNING_RATES, AGAIN, keys={"chosen": {}, "runs": list})
    for task, rates in sweep["chosen"].items():
        where = f"{LEARNING_RATES}: chosen: {plain(task)}"
        check_keys(rates, {}, where, AGAIN)
        check_keys(rates, dict.fromkeys(rates, NUMBER), where, AGAIN)
    for number, run_ in enumerate(sweep["runs"], start=1):
        check_record(run_, f"{LEARNING_RATES}: run {number}", AGAIN)
    return sweep


def choose(runs: list[dict], solved: float = 0.99) -> float:
    """The smallest learning rate that solves the task (99 %), else the lower one of the two
    neighbours in the grid whose mean loss is lowest.

    Smallest, because every method forgets more at larger rates: speed beyond need is not rewarded.
    Of two, because the best rate itself may stand at a cliff: at the next one, other seeds fail.
    """
    by_lr: dict[float, list[dict]] = {}
    for record in sorted(runs, key=lambda record: record["lr"]):
        by_lr.setdefault(record["lr"], []).append(record)
    solving = [lr for lr, group in by_lr.items()
               if statistics.mean(r["share"] for r in group) >= solved]
    if solving:
        return solving[0]
    mean_loss = {lr: statistics.mean(map(loss_of, group)) for lr, group in by_lr.items()}
    pairs = itertools.pairwise(by_lr) if len(by_lr) > 1 else [(lr, lr) for lr in by_lr]
    return min(pairs, key=lambda pair: mean_loss[pair[0]] + mean_loss[pair[1]])[0]


def loss_of(run: dict) -> float:
    """Infinite for a run that diverged, whether it says None or a number that is not finite."""
    loss = run["loss"]
    return loss if loss is not None and math.isfinite(loss) else math.inf


def scores(job: Job) -> dict:
    """What a run gave, without its curve."""
    return {key: value for key, value in run(job).items() if key != "history"}


def record(line: dict) -> dict:
    """A line of a study with its job and its results side by side."""
    return line["job"] | {key: value for key, value in line.items()
                          if key not in ("job", "version")}


def sweep(methods: list[str], tasks: list[str], seeds: tuple[int, ...], out: Path, workers: int,
          progress: Progress | None = None) -> dict:
    """Every rate of every arm's grid on the seeds of the sweep, and the choice."""
    jobs = [Job(arm, task, seed, lr, STEPS[task], "sweep") for task in tasks for arm in methods
            for lr in RECIPES[arm].grid for seed in seeds]
    lines = run_study(jobs, scores, out / LINES, VERSION, workers, progress, "sweep",
                      RECORD)
    runs = [record(line) for line in lines]
    chosen = {task: {arm: choose([r for r in runs if (r["arm"], r["task"]) == (arm, task)])
                     for arm in methods} for task in tasks}
    return dict(rule=rule(), chosen=chosen, runs=runs)


def rule() -> str:
    """How a rate is chosen, in one sentence."""
    return " ".join(choose.__doc__.split("\n\n")[0].split())


def with_stored(found: dict) -> dict:
    """A sweep together with what the stored one has of other arms and tasks: a whole table."""
    before = stored() if LEARNING_RATES.exists() else dict(chosen={}, runs=[])
    kept = [run for run in before["runs"]
            if run["arm"] not in found["chosen"].get(run["task"], {})]
    tasks = [*before["chosen"], *(task for task in found["chosen"] if task not in before["chosen"])]
    return found | dict(runs=[*kept, *found["runs"]],
                        chosen={task: before["chosen"].get(task, {}) | found["chosen"].get(task, {})
                                for task in tasks})


def stored_means() -> list[dict]:
    """`means` of the stored sweep; `chosen`: the rate that is used."""
    sweep = stored()
    return [found | dict(chosen=sweep["chosen"].get(found["task"], {}).get(found["arm"])
                         == found["lr"]) for found in means(sweep["runs"])]


def means(runs: list[dict]) -> list[dict]:
    """Of each task, arm and rate: loss (None: some seed diverged), share, and forgetting, averaged
    over the seeds."""
    groups = {}
    for run_ in runs:
        groups.setdefault((run_["task"], run_["arm"], run_["lr"]), []).append(run_)
    found = []
    for (task, arm, lr), group in groups.items():
        whole = all(run_["loss"] is not None for run_ in group)
        found.append(dict(
            task=task, arm=arm, lr=lr, n=len(group),
            share=statistics.mean(run_["share"] for run_ in group),
            loss=statistics.mean(run_["loss"] for run_ in group) if whole else None,
            forgetting=statistics.mean(forgotten(run_) for run_ in group) if whole else None))
    return found
