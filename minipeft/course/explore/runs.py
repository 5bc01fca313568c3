"""What the stored runs cost and gave: every run that reports, the means, and their Pareto fronts.

    experiments()[0]["runs"]                          a run a seed, with every quantity measured
    experiments()[0]["fronts"]["trained"]["score"]    the methods that no other one dominates

A quantity that an experiment has not measured is absent from it, and None in a run that diverged.
"""
import math
import statistics

from ...files import RESULTS, check_keys
from ...lab import capacity, graded, tool_calls
from ...lab.compare import LONG, PHASES, TEXT
from ...lab.runs import BATCH, KEPT, NUMBER, check_record, forgotten
from ...lab.summary import usual_form
from ...recipes import RECIPES
from ...tiny_world.languages import Languages
from .. import claims

QUANTITIES = {      # key: (name with its unit, which values are better, the scale that suits it)
    "trained": ("trained parameters", "less", "log"),
    "memory": ("memory to train, MiB", "less", "linear"),
    "step": ("seconds per training step", "less", "linear"),
    "prefill": (f"seconds to read {TEXT} tokens", "less", "linear"),
    "decode": ("seconds per token written", "less", "linear"),
    "score": ("score, %", "more", "linear"),
    "forgetting": ("forgetting, nats per token", "less", "linear"),
    "loss": ("loss, nats per token", "less", "log"),
}
ABOUT_RUN = ("arm", "seed", "rate", "steps", "flat")

# How each quantity was measured
TRAINED = {"trained": "numbers that an optimizer changes"}
BITS = {"score": "bits stored, % of all bits of the languages; a wrong belief counts below zero"}
PROMPTS = {"score": "share of held-out prompts answered exactly"}
FORGOTTEN = {"forgetting": f"rise of the loss over the base model's on documents that no task "
                           f"redefines ({', '.join(KEPT)}); below zero where it fell"}
TINY_COSTS = {
    "memory": f"weights, gradients, AdamW's two moments and the activations of one step of "
              f"{LONG[0]} x {LONG[1]} tokens, counted, once per method",
    "step": f"median of a step of {LONG[0]} x {LONG[1]} tokens, one thread, once per method",
    **dict.fromkeys(PHASES, "median of one row, one thread, once per method; LoRA merged, the "
                            "others as trained")}
CALLS = {"score": "requests of the test set answered with exactly the right tool call"}
STATIC = {"memory": "weights, gradients and AdamW's two moments in float32 (QLoRA's linears in 4 "
                    "bits), once per method; activations come on top"}
ENGLISH = "rise of the loss over the untrained model's on docstrings of Python's standard library"


def experiments() -> list[dict]:
    """The hardest evidence first: a real language model, then what is learned to the end."""
    measured = claims.stored()
    held = capacity.read(RESULTS / "capacity")
    found = [study(), *(at_capacity(held, K) for K in reversed(capacity.OFFERED)),
             languages_at_the_end(measured.graded), languages_fast(measured.graded),
             *(tiny(measured.compare, task) for task in reversed(measured.compare["tasks"]))]
    return [experiment for experiment in found if experiment["runs"]]


def experiment(name: str, about: str, how: dict[str, str], rows: list[dict]) -> dict:
    """how: quantity -> how it was measured; a row holds each of them, and ABOUT_RUN"""
    rows = kept(rows, how)
    means = averages(rows, ("arm",), how)
    fronts = {x: {y: [means[i]["arm"] for i in best(means, x, y)] for y in how if y != x}
              for x in how}
    return dict(name=name, about=f"{about} {counted(means)}", how=how, runs=rows, means=means,
                fronts=fronts)


def kept(rows: list[dict], how: dict[str, str]) -> list[dict]:
    """What the page shows of each run; an arm's seeds in their order."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    return [{key: row[key] for key in (*ABOUT_RUN, *how) if key in row} for row in
            sorted(rows, key=lambda row: (arms.index(row["arm"]), row["seed"]))]


def averages(rows: list[dict], keys: tuple[str, ...], quantities: dict) -> list[dict]:
    """A mean of each quantity for the rows that agree in `keys`; None if one of them has none."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, values), n=len(group)) | {q: mean([row[q] for row in group])
                                                     for q in quantities}
            for values, group in groups.items()]


def mean(values: list[float | None]) -> float | None:
    return None if None in values else statistics.mean(values)


def best(means: list[dict], x: str, y: str) -> list[int]:
    """Which means are on the Pareto front of two quantities."""
    there = [i for i, row in enumerate(means) if row[x] is not None and row[y] is not None]
    sign = {q: 1 if QUANTITIES[q][1] == "less" else -1 for q in (x, y)}
    return [there[i] for i in front([(sign[x] * means[j][x], sign[y] * means[j][y])
                                     for j in there])]


def front(points: list[tuple[float, float]]) -> list[int]:
    """The points that no other one dominates, from small x to large, where less is better: another
    one dominates that is nowhere larger and somewhere less."""
    least, found = math.inf, []
    for x, y, i in sorted((x, y, i) for i, (x, y) in enumerate(points)):
        if y < least or (found and points[found[-1]] == (x, y)):
            least = y
            found.append(i)
    return found


def counted(means: list[dict]) -> str:
    """How many runs a mean is of, in a sentence."""
    counts = {row["n"] for row in means}
    several = "" if len(counts) < 2 else f"{min(counts)} to "
    return f"Seeds in a mean: {several}{max(counts, default=0)}."


def row(run: dict, arm: str, **measured) -> dict:
    """A run of the tiny GPT, from any of its experiments."""
    return dict(arm=arm, seed=run["seed"], rate=run["lr"], steps=run["steps"], loss=run["loss"],
                trained=run["trainable"], score=100 * run["share"],
                forgetting=None if run["loss"] is None else forgotten(run)) | measured


def sized(run: dict) -> str:
    """The method, and its size where that is not the recipe's."""
    label = RECIPES[run["arm"]].label
    return label if run["size"] is None else f"{label}, size {run['size']}"


def tiny(results: dict, task: str) -> dict:
    """One task of compare.json, where every cost was measured."""
    do = "make it again with: python -m minipeft compare"
    rows = []
    for number, run in enumerate(results["runs"], start=1):
        check_record(run, f"compare.json: run {number}", do)
        if run["task"] == task:
            rows.append(row(run, RECIPES[run["arm"]].label,
                            **costs(results["costs"], run["arm"], do)))
    return experiment(
        f"Tiny GPT, {task}", f"{results['steps'][task]} steps of {BATCH} examples, each method at "
        f"its own rate from a sweep: what is learned in this budget, not what a method can hold.",
        TRAINED | TINY_COSTS | (BITS if task == "languages" else PROMPTS) | FORGOTTEN, rows)


def costs(found: dict, arm: str, do: str) -> dict[str, float]:
    calls = {phase: f"{usual_form(arm)}, {phase}, 1" for phase in PHASES}
    median = {"median": NUMBER}
    check_keys(found, {arm: {"bytes": {}, "step": median, "latency": {
        call: {"seconds": median} for call in calls.values()}}}, "compare.json: costs", do)
    cost = found[arm]
    return dict(memory=sum(cost["bytes"].values()) / 2**20, step=cost["step"]["median"],
                **{phase: cost["latency"][call]["seconds"]["median"]
                   for phase, call in calls.items()})


def languages_fast(runs: list[dict]) -> dict:
    rows = [row(run, sized(run)) for run in runs
            if (run["task"], run["steps"], run["split"]) == ("languages", graded.FAST, "report")]
    return experiment(
        f"Tiny GPT, languages, {graded.FAST} steps, more seeds and sizes",
        f"{graded.FAST} steps of {BATCH} examples, each method and size at its own rate: speed, "
        f"not what a method can hold.", TRAINED | BITS | FORGOTTEN, rows)


def languages_at_the_end(runs: list[dict]) -> dict:
    rows = []
    for arm, recipe in RECIPES.items():
        steps, _, flat = graded.at_the_end(runs, arm)
        rows += [row(run, recipe.label, flat=flat) for run in runs if run["split"] == "report"
                 and (run["arm"], run["task"], run["steps"], run["size"])
                 == (arm, "languages", steps, None)]
    return experiment(
        "Tiny GPT, languages, at the end",
        f"Twice the steps again and again, until that adds less than a point, at most "
        f"{graded.DOUBLED[-1]:,}; a run that was still rising says so.",
        TRAINED | BITS | FORGOTTEN, rows)


def at_capacity(runs: list[dict], K: int) -> dict:
    rows = [row(end, arm.label, flat=end["flat"]) for name, arm in capacity.ARMS.items()
            for end in capacity.ends(runs, name, K)]
    return experiment(
        f"Tiny GPT, {K} languages, at the end",
        f"{Languages(K).bits:,.0f} bits offered; twice the steps again and again, until that adds "
        f"less than a point, at most {capacity.MOST_STEPS:,}; a run that was still rising says "
        f"so. {not_run([row['arm'] for row in rows])}",
        TRAINED | BITS | FORGOTTEN, rows)


def not_run(arms: list[str]) -> str:
    """Which arms the study of capacity lacks, in a sentence."""
    missing = [arm.label for arm in capacity.ARMS.values() if arm.label not in arms]
    return f"Not run: {'; '.join(missing)}." if missing else "Every arm was run."


def study() -> dict:
    """SmolLM2 on tool calls, from the study with rates of seeds of their own."""
    found = tool_calls.read(RESULTS / "tool_calls")
    reported = [run for method in RECIPES for run in tool_calls.report(found, method)
                if run["steps"]]
    costs = tool_calls.read_costs(RESULTS / "tool_calls")["float32"] if reported else {}
    rows = [dict(call_row(found, run, "test"),
                 step=statistics.median(costs[run["method"]]["seconds"]),
                 memory=sum(costs[run["method"]][key] for key in ("weights", "training")) / 2**20)
            for run in reported]
    return experiment(
        f"SmolLM2-135M, tool calls, {tool_calls.budget(found)} steps",
        f"{tool_calls.budget(found)} steps of 8 examples, rates chosen on other requests and "
        f"seeds: what is learned in this budget, not what a method can hold. The frozen weights "
        f"were bfloat16, full fine-tuning's float32.",
        TRAINED | STATIC | {"step": "median of steps on the same 8 examples, methods in turn, all "
                                    "in float32, one thread, once per method"} | CALLS
        | {"forgetting": f"{ENGLISH}, its weights in the same form"}, rows)


def call_row(found: list[dict], run: dict, scored_on: str) -> dict:
    """A run of the study of SmolLM2, scored on its "test" or its "validation" requests."""
    right = run[scored_on]
    return dict(arm=RECIPES[run["method"]].label, seed=run["seed"], rate=run["lr"],
                steps=run["steps"], trained=run["trainable"], loss=run["loss"],
                score=None if right is None else 100 * statistics.mean(right),
                forgetting=tool_calls.forgotten(found, run))
