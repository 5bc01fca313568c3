"""The learning rates that were tried: every run of every stored sweep, and the rate it chose.

    sweeps()[0]["chosen"]["LoRA"]
"""
from ...files import RESULTS
from ...lab import capacity, graded, tool_calls
from ...lab.rates import stored
from ...lab.runs import BATCH, STEPS
from ...recipes import RECIPES
from .. import claims
from .runs import (BITS, ENGLISH, FORGOTTEN, PROMPTS, averages, call_row, counted, kept, not_run,
                   row, sized)

LOSS = {"loss": "on held-out examples, after the last step"}


def sweeps() -> list[dict]:
    """In the order of `runs.experiments`."""
    languages, held = claims.stored().graded, capacity.read(RESULTS / "capacity")
    found = [study(), *(at_capacity(held, K) for K in (32, 8)),
             longer(languages), *(other_sizes(languages, task) for task in ("languages", "novel")),
             *(tiny(task) for task in reversed(stored()["chosen"]))]
    return [sweep for sweep in found if sweep["runs"]]


def sweep(name: str, about: str, how: dict[str, str], rows: list[dict],
          chosen: dict[str, float]) -> dict:
    """how: as of runs.experiment; chosen: an arm's rate in the runs that report"""
    rows = kept(rows, how)
    means = averages(rows, ("arm", "rate"), how)
    return dict(name=name, about=f"{about} {counted(means)}", how=how, runs=rows, means=means,
                chosen=chosen)


def tiny(task: str) -> dict:
    """One task of the sweep in data/."""
    found = stored()
    return sweep(
        f"Tiny GPT, {task}",
        f"{STEPS[task]} steps of {BATCH} examples, on prompts and seeds that are not reported.",
        LOSS | (BITS if task == "languages" else PROMPTS) | FORGOTTEN,
        [row(run, sized(run)) for run in found["runs"] if run["task"] == task],
        {RECIPES[arm].label: rate for arm, rate in found["chosen"][task].items()})


def of_graded(runs: list[dict], task: str, steps: int, other: bool) -> tuple[list, dict]:
    """The rows of a sweep in the study of languages, and the rates of the runs that report."""
    runs = [run for run in runs if (run["task"], run["steps"], run["size"] is not None)
            == (task, steps, other)]
    return ([row(run, sized(run)) for run in runs if run["split"] == "sweep"],
            {sized(run): run["lr"] for run in runs if run["split"] == "report"})


def longer(runs: list[dict]) -> dict:
    return sweep(f"Tiny GPT, languages, {graded.TRIED} steps",
                 f"{graded.TRIED} steps of {BATCH} examples: the rates of all longer runs.",
                 LOSS | BITS | FORGOTTEN, *of_graded(runs, "languages", graded.TRIED, False))


def other_sizes(runs: list[dict], task: str) -> dict:
    return sweep(f"Tiny GPT, {task}, other sizes",
                 f"{graded.FAST} steps of {BATCH} examples, adapters of other sizes.",
                 LOSS | (BITS if task == "languages" else PROMPTS) | FORGOTTEN,
                 *of_graded(runs, task, graded.FAST, True))


def at_capacity(runs: list[dict], K: int) -> dict:
    tried = {name: found for name in capacity.ARMS if (found := capacity.tried(runs, name, K))}
    labels = {name: capacity.ARMS[name].label for name in tried}
    return sweep(
        f"Tiny GPT, {K} languages",
        f"{capacity.SWEEP * K:,} steps of {BATCH} examples. {not_run(list(labels.values()))}",
        LOSS | BITS | FORGOTTEN,
        [row(run, labels[name]) for name, found in tried.items() for run in found],
        {label: capacity.rate(runs, name, K) for name, label in labels.items()})


def study() -> dict:
    """SmolLM2 on tool calls, from the study with rates of seeds of their own."""
    found = tool_calls.read(RESULTS / "tool_calls")
    rows = [call_row(found, run, "validation") for run in found if run["split"] == "sweep"]
    return sweep(
        f"SmolLM2-135M, tool calls, {tool_calls.budget(found)} steps",
        f"{tool_calls.budget(found)} steps of 8 examples, on seeds that are not reported. Rates "
        f"that are not here have not been run.",
        {"loss": "on the validation requests, after the last step",
         "score": "validation requests with every token right", "forgetting": ENGLISH}, rows,
        {recipe.label: rate for method, recipe in RECIPES.items()
         if (rate := tool_calls.chosen(found, method)) is not None})
