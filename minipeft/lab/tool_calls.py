"""SmolLM2 on tool calls: what a run of that study is, which rate it takes, and what came out.

    python benchmarks/tool_calls_study.py        a line a run in OUT/runs.jsonl (hours)

Rates are chosen on the validation set, whose phrasings and values occur neither in training nor in
the test; sweeps have seeds of their own. What is reported is scored on the test requests after the
last step: no checkpoint is picked.
"""
import itertools
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..adapter import check_choice
from ..files import read_json
from ..recipes import RECIPES
from .intervals import Difference, paired_difference
from .rates import loss_of, record
from .runs import NUMBER
from .study import read_lines
from .summary import layout, mean_sd

LINES, COSTS = "runs.jsonl", "step_costs.json"     # in the folder of the study
VERSION = 1                      # of it, see study.py
KINDS = ("form", "stop", "name", "values")     # of an answer's tokens, and of errors
TRAINING = 2000                  # examples of the whole training set
SWEEP_SEEDS = (100, 101)         # no seed of a report
# Peak learning rates, from small to large; methods with the same grid are tried at the same rates
WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
VECTORS = (2e-3, 5e-3, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0, 2.0)
ALL = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
GRIDS = {"lora": WEIGHTS, "qlora": WEIGHTS, "houlsby": WEIGHTS, "full": ALL, "prompt": VECTORS,
         "prefix": VECTORS}
MIDDLE = {WEIGHTS: 3e-3, ALL: 1e-4, VECTORS: 1e-1}       # of the three rates that are tried first
DTYPES = ("float32", "bfloat16")                         # of COSTS
BASES = {"full": "full", "qlora": "qlora"}               # before training; the others: "lora"

NONE = type(None)
RESULT = {"trainable": int, "bytes": {"weights": int, "training": int}, "machine": {},
          "seconds_per_step": (*NUMBER, NONE), "curve": list, "loss": (*NUMBER, NONE),
          "validation": (list, NONE), "docstrings": (*NUMBER, NONE), "test": (list, NONE),
          "test_loss": (*NUMBER, NONE), "errors": (list, NONE), "answers": (list, NONE)}
JOB = {"method": str, "lr": NUMBER, "seed": int, "steps": int, "dtype": str, "examples": int,
       "ordinary": int, "requests": (int, NONE), "split": str}


@dataclass(frozen=True)
class Job:
    method: str                  # a key of RECIPES, at the size for a language model
    lr: float                    # peak; 0 where nothing is trained
    seed: int                    # of the adapter, the order of the data, and which examples
    steps: int                   # of 8 examples; 0: the model as it is before
    dtype: str                   # of the frozen weights that are not in 4 bits
    examples: int = TRAINING     # of the training set
    ordinary: int = 0            # ordinary conversations mixed in
    requests: int | None = None  # of the validation and of the test; None: all
    split: str = "report"        # or "sweep": scored on the validation alone

    def __post_init__(self):
        check_choice("method", self.method, tuple(RECIPES))
        check_choice("split", self.split, ("report", "sweep"))


def read(out: Path) -> list[dict]:
    """The records of the finished runs in the folder."""
    return [record(line)
            for line in read_lines(out / LINES, VERSION, RESULT | {"job": JOB}).values()]


def read_costs(out: Path) -> dict:
    """What a step costs, by dtype of the frozen weights and method: bytes of the weights, of what
    training adds (gradients, two moments), and seconds of each of some steps in turn."""
    cost = {"weights": int, "training": int, "seconds": list}
    return read_json(out / COSTS, "make it again with: python benchmarks/tool_calls_study.py",
                     keys={"machine": {}, **{dtype: dict.fromkeys(RECIPES, cost)
                                             for dtype in DTYPES}})


# Rates


def rates(found: list[dict], methods: tuple[str, ...]) -> tuple[float, ...]:
    """The rates that these methods, which have one grid, are all tried at, as far as the runs tell:
    three, and one more beyond the best of any of them while that stands at an end."""
    grid = GRIDS[methods[0]]
    first = grid.index(MIDDLE[grid]) - 1
    last = first + 2
    while True:
        best = {best_rate(found, method, grid[first:last + 1]) for method in methods}
        wider = (max(first - (grid[first] in best), 0),
                 min(last + (grid[last] in best), len(grid) - 1))
        if wider == (first, last):
            return grid[first:last + 1]
        first, last = wider


def best_rate(found: list[dict], method: str, tried: tuple[float, ...]) -> float | None:
    """The one of these rates with the lowest validation loss, mean of the sweep's seeds; None if a
    run of the sweep is missing."""
    losses = {lr: sweep_losses(found, method, lr) for lr in tried}
    if any(len(of) < len(SWEEP_SEEDS) for of in losses.values()):
        return None
    return min(tried, key=lambda lr: statistics.mean(losses[lr]))


def sweep_losses(found: list[dict], method: str, lr: float) -> list[float]:
    return [loss_of(r) for r in found
            if (r["split"], r["method"], r["lr"]) == ("sweep", method, lr)]


def chosen(found: list[dict], method: str) -> float | None:
    """The rate of the runs that report; None before the sweep is done."""
    family = tuple(other for other, grid in GRIDS.items() if grid is GRIDS[method]
                   and any(r["method"] == other for r in found if r["split"] == "sweep"))
    return best_rate(found, method, rates(found, family)) if method in family else None


# What came out


def budget(found: list[dict]) -> int:
    """Steps of the runs whose rates were swept."""
    return max((r["steps"] for r in found if r["split"] == "sweep"), default=0)


def report(found: list[dict], method: str, **other) -> list[dict]:
    """The runs of a method that report, a seed each: at its rate, with all examples and nothing
    mixed in, unless `other` (steps, examples, ordinary) is asked for."""
    wanted = dict(split="report", method=method, steps=budget(found), examples=TRAINING,
                  ordinary=0) | other
    runs = [r for r in found if all(r[key] == value for key, value in wanted.items())]
    return sorted(runs, key=lambda r: r["seed"])


def forgotten(found: list[dict], run: dict) -> float | None:
    """What a token of the docstrings costs more than under the model before, with its weights in
    the same form, in nats; None where that was not run, or the run diverged."""
    before = report(found, BASES.get(run["method"], "lora"), steps=0)
    if not before or run["docstrings"] is None:
        return None
    return run["docstrings"] - before[0]["docstrings"]


def is_call(answer: str) -> bool:
    """Whether an answer to an ordinary question is a tool call, or begins as one."""
    return answer.startswith('{"tool"')


def others(found: list[dict]) -> list[tuple[str, dict]]:
    """(method, what is other than usual) of the runs that report, in the order in which they came:
    more steps, fewer examples, ordinary conversations."""
    usual = dict(steps=budget(found), examples=TRAINING, ordinary=0)
    seen = []
    for r in found:
        other = {key: r[key] for key, value in usual.items() if r[key] != value}
        if r["split"] == "report" and r["steps"] and other and (r["method"], other) not in seen:
            seen.append((r["method"], other))
    return seen


def label(method: str, **other) -> str:
    return ", ".join([RECIPES[method].label, *(f"{value:,} {key}" for key, value in other.items())])


def differences(found: list[dict]) -> list[dict]:
    """Exact match on the test of one arm over another on the same requests, with intervals: every
    pair of methods, and each method under other conditions over itself, on the same seeds."""
    usual = {method: report(found, method) for method in RECIPES}
    pairs = [(label(a), usual[a], label(b), usual[b])
             for a, b in itertools.combinations(RECIPES, 2)]
    for method, other in others(found):
        runs = report(found, method, **other)
        seeds = {r["seed"] for r in runs}
        pairs.append((label(method, **other), runs, label(method),
                      [r for r in usual[method] if r["seed"] in seeds]))
    return [dict(a=a, b=b, **difference(of_a, of_b).as_dict())
            for a, of_a, b, of_b in pairs if of_a and of_b]


def difference(a: list[dict], b: list[dict]) -> Difference:
    return paired_difference([r["test"] for r in a], [r["test"] for r in b])


# Tables


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation; of one value, the value; of none, a dash."""
    return mean_sd(values, digits) if values else "-"


def exact(runs: list[dict]) -> str:
    return spread([100 * statistics.mean(r["test"]) for r in runs], 1)


def sweep_table(found: list[dict]) -> str:
    """A row a method and rate: validation loss and exact match, means of the sweep's seeds."""
    rows = []
    for method, grid in GRIDS.items():
        marks = {chosen(found, method): "chosen"}
        marks |= {lr: "chosen, at the grid's end" for lr in (grid[0], grid[-1]) if lr in marks}
        for lr in grid:
            runs = [r for r in found
                    if (r["split"], r["method"], r["lr"]) == ("sweep", method, lr)]
            whole = [r for r in runs if r["loss"] is not None]
            if runs:
                forgot = [f for r in whole if (f := forgotten(found, r)) is not None]
                rows.append([RECIPES[method].label, f"{lr:g}", str(len(runs)),
                             spread([r["loss"] for r in whole], 4),
                             spread([100 * statistics.mean(r["validation"]) for r in whole], 1),
                             spread(forgot, 2), str(len(runs) - len(whole)),
                             marks.get(lr, "")])
    return layout(["", "rate", "n", "validation loss", "exact %", "docstrings", "diverged", ""],
                  rows)


def report_table(found: list[dict]) -> str:
    """A row a method: what it learned, what goes wrong first in its errors, what it forgot."""
    rows = []
    for method, recipe in RECIPES.items():
        if runs := report(found, method):
            kinds = Counter(error["kind"] for r in runs for error in r["errors"])
            forgot = [f for r in runs if (f := forgotten(found, r)) is not None]
            rows.append([
                recipe.label, f"{runs[0]['trainable']:,}", runs[0]["dtype"], f"{runs[0]['lr']:g}",
                str(runs[0]["steps"]), str(len(runs)), exact(runs),
                spread([r["test_loss"] for r in runs if r["loss"] is not None], 4),
                " ".join(str(kinds[kind]) for kind in KINDS), spread(forgot, 2)])
    return layout(["", "trained", "dtype", "rate", "steps", "n", "exact %", "test loss",
                   "/".join(KINDS), "docstrings"], rows)


def other_table(found: list[dict]) -> str:
    """A row a method and condition other than usual: exact match, and what ten questions get."""
    rows = []
    for method, other in [*((method, {}) for method in RECIPES), *others(found)]:
        if runs := [r for r in report(found, method, **other) if r["answers"] is not None]:
            calls = [sum(map(is_call, r["answers"])) for r in runs]
            rows.append([label(method, **other), str(len(runs)), exact(runs), spread(calls, 1)])
    return layout(["", "n", "exact %", "tool calls in reply to ten ordinary questions"], rows)


def arc(found: list[dict], method: str, key: str) -> dict[int, float]:
    """step -> loss, exact_match, or the share of the validation requests with all tokens of a kind
    right; mean of the method's seeds."""
    runs = [r for r in report(found, method) if r["loss"] is not None]
    return {points[0]["step"]: statistics.mean(point[key] for point in points)
            for points in zip(*(r["curve"] for r in runs))}


def arc_table(found: list[dict], method: str) -> str:
    """What is right first: a row a step, in % of the validation requests."""
    columns = [arc(found, method, key) for key in (*KINDS, "exact_match")]
    rows = [[str(step), *(f"{100 * column[step]:.0f}" for column in columns)]
            for step in columns[0]]
    return layout([f"{RECIPES[method].label}, step", *KINDS, "all"], rows)


def costs_table(costs: dict) -> str:
    """MB of weights, gradients and moments, and seconds of a step: a row a method."""
    rows = [[RECIPES[method].label, *(text for dtype in DTYPES
                                      for text in cost_texts(costs[dtype][method]))]
            for method in costs[DTYPES[0]]]
    return layout(["", *(f"{dtype}: {unit}" for dtype in DTYPES for unit in ("MB", "s/step"))],
                  rows)


def cost_texts(cost: dict) -> tuple[str, str]:
    return (f"{(cost['weights'] + cost['training']) / 1e6:.0f}",
            f"{statistics.median(cost['seconds']):.2f}")


def differences_table(found: list[dict]) -> str:
    rows = [[f"{d['a']} - {d['b']}", f"{100 * d['mean']:+.1f}", points(d["requests"]),
             points(d["seeds"]), f"{d['n_seeds'][0]}, {d['n_seeds'][1]}"]
            for d in differences(found)]
    return layout(["exact match, points", "", "95 %, requests", "and seeds", "n"], rows)


def points(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:+.1f} … {100 * interval[1]:+.1f}"
