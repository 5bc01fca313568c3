"""The summary table that everyone repeats, claimed beside measured.

A claim in words agrees when the measured number lies in the range that RULES gives it.
"""
import math
import statistics

from ..recipes import RECIPES
from .runs import KEPT

CLAIMED = {    # method: (updates, inference latency, memory savings, performance)
    "full": ("100 %", "zero", "none", "best"),
    "lora": ("< 1 %", "zero (merged)", "high", "near-FFT"),
    "qlora": ("< 1 %", "high (dequant)", "very high", "near-FFT"),
    "prompt": ("< 0.1 %", "zero", "high", "lower"),
    "houlsby": ("~ 3 %", "high", "medium", "good"),
}
COLUMNS = ("updates", "latency", "memory", "performance")
NO_CLAIM = "no claim"

# What a claim in words means here: the measured number lies in [low, high].
RULES = {
    ("updates", "100 %"): (100, 100), ("updates", "< 1 %"): (0, 1),
    ("updates", "< 0.1 %"): (0, 0.1), ("updates", "~ 3 %"): (2, 4),
    ("latency", "zero"): (-math.inf, 5), ("latency", "zero (merged)"): (-math.inf, 5),
    ("latency", "high"): (20, math.inf), ("latency", "high (dequant)"): (20, math.inf),
    ("memory", "none"): (0, 0), ("memory", "medium"): (25, 50),
    ("memory", "high"): (50, 100), ("memory", "very high"): (75, 100),
    ("performance", "best"): (-2, math.inf), ("performance", "near-FFT"): (-2, math.inf),
    ("performance", "good"): (-10, math.inf), ("performance", "lower"): (-100, -2),
}
UNITS = {
    "updates": "share of all parameters that is trained",
    "latency": "time of a forward pass beyond the unadapted model's, one row of 64 tokens",
    "memory": "bytes of weights, gradients, optimizer and activations in a step, against FFT's",
    "performance": "exact match; of languages, the share of the bits; mean ± sd over the seeds",
}


def spread(values: list[float]) -> tuple[float, float]:
    """(mean, standard deviation); one value has deviation 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def shares(results: dict, arm: str, task: str) -> list[float]:
    """How much of the task each seed has learned: exact match, or bits stored of all bits."""
    return [run["share"] for run in results["runs"] if (run["arm"], run["task"]) == (arm, task)]


def forgetting(run: dict) -> float:
    """Rise of the loss on documents that no task redefines, nats per token, mean of their kinds."""
    return statistics.mean(run["forgetting"][kind] for kind in KEPT)


def latency_overhead(results: dict, arm: str, rows: int = 1, form: str | None = None) -> float:
    """Percent of the unadapted model's time on top; LoRA merged unless asked otherwise."""
    form = form or ("merged" if arm == "lora" else "as trained")
    base = results["costs"]["full"]["latency"][f"as trained, batch {rows}"]["median"]
    return 100 * (results["costs"][arm]["latency"][f"{form}, batch {rows}"]["median"] / base - 1)


def measured(results: dict, arm: str) -> dict[str, float]:
    """The number behind each column, in percent; performance: points against FFT, worst task."""
    cost, full = results["costs"][arm], results["costs"]["full"]
    rivals = ["full"] if arm != "full" else results["methods"]
    gaps = [statistics.mean(shares(results, arm, task))
            - max(statistics.mean(shares(results, rival, task)) for rival in rivals)
            for task in results["tasks"]]
    return {"updates": 100 * cost["trainable"] / cost["parameters"],
            "latency": latency_overhead(results, arm),
            "memory": 100 * (1 - sum(cost["bytes"].values()) / sum(full["bytes"].values())),
            "performance": 100 * min(gaps)}


def agrees(column: str, claim: str, value: float) -> bool | None:
    """Whether the number lies in the claim's range; None where there is no claim."""
    if claim == NO_CLAIM:
        return None
    low, high = RULES[column, claim]
    return low <= value <= high


def performance(results: dict, arm: str) -> str:
    parts = (spread(shares(results, arm, task)) for task in results["tasks"])
    return ", ".join(f"{100 * mean:.0f}±{100 * deviation:.0f}" for mean, deviation in parts)


def cells(results: dict, arm: str) -> list[tuple[str, str, str]]:
    """(claimed, sign, measured) of each column; the sign marks a disagreement."""
    values = measured(results, arm)
    texts = {"updates": f"{values['updates']:.3g} %", "latency": f"{values['latency']:+.0f} %",
             "memory": f"{values['memory']:.0f} % less", "performance": performance(results, arm)}
    claims = dict(zip(COLUMNS, CLAIMED.get(arm, (NO_CLAIM,) * len(COLUMNS))))
    return [(claim, "≠" if agrees(column, claim, values[column]) is False else " ", texts[column])
            for column, claim in claims.items()]


def layout(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip()
             for row in (header, *rows)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def summary_table(results: dict) -> str:
    """One row a method, each column `claimed | measured`."""
    tasks = ", ".join(results["tasks"])
    header = ["method", *(f"{column:>14} | {about}" for column, about in zip(
        COLUMNS, ("measured", "batch 1", "to train", f"learned, %: {tasks}")))]
    rows = [[RECIPES[arm].label, *(f"{claim:>14} |{sign}{value}" for claim, sign, value
                                in cells(results, arm))] for arm in results["methods"]]
    return layout(header, rows)


def markdown_table(results: dict) -> str:
    """The same for a page."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for arm in results["methods"]:
        row = [f"{claim} → {sign.strip()} **{value}**" for claim, sign, value
               in cells(results, arm)]
        lines.append(f"| {RECIPES[arm].label} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def cost_table(results: dict) -> str:
    """What was measured, method by method."""
    header = ["method", "trained", "file", "weights", "gradients", "optimizer", "activations",
              "step", "batch 1", "merged", "batch 32", "merged", "forgetting", "restored"]
    rows = []
    for arm in results["methods"]:
        cost, runs = results["costs"][arm], [r for r in results["runs"] if r["arm"] == arm]
        times = [cost["latency"].get(f"{form}, batch {rows_}") for rows_ in (1, 32)
                 for form in ("as trained", "merged")]
        mean, deviation = spread([forgetting(r) for r in runs if r["task"] == results["tasks"][-1]])
        rows.append([RECIPES[arm].label, f"{cost['trainable']:,}", kilo(cost["file_bytes"]),
                     *map(kilo, cost["bytes"].values()), f"{1e3 * cost['step']['median']:.0f} ms",
                     *(f"{1e3 * t['median']:.2f} ms" if t else "-" for t in times),
                     f"{mean:+.2f}±{deviation:.2f}",
                     "bitwise" if all(r["restored"] for r in runs) else "no"])
    return layout(header, rows)


def full_size_table(results: dict) -> str:
    """The same configurations at a real model's shapes."""
    header = ["method", "trained", "of all", "file", "weights", "gradients + AdamW", "together"]
    rows = [[RECIPES[arm].label, f"{size['trainable']:,}",
             f"{100 * size['trainable'] / size['parameters']:.3g} %",
             f"{size['file_bytes'] / 1e9:.3f} GB", f"{size['weights'] / 1e9:.2f} GB",
             f"{size['gradients_and_optimizer'] / 1e9:.2f} GB",
             f"{(size['weights'] + size['gradients_and_optimizer']) / 1e9:.2f} GB"]
            for arm, size in results["full_size"].items()]
    return layout(header, rows)


def kilo(n: int) -> str:
    return f"{n / 1024:,.0f} KiB"


# ---------------------------------------------------------------- why a claim does not hold


def reason(results: dict, arm: str, column: str) -> str:
    """One sentence on a disagreement, with the numbers that explain it."""
    cost, size = results["costs"][arm], results["full_size"][arm]
    full = results["costs"]["full"]
    share = 100 * size["trainable"] / size["parameters"]
    kept = 100 * cost["bytes"]["activations"] / full["bytes"]["activations"]
    if column == "updates":
        return (f"the count grows with the width, the model with its square: the same "
                f"configuration is {share:.3g} % of {size['preset']}")
    if column == "memory":
        static = [sum(c["bytes"].values()) - c["bytes"]["activations"] for c in (cost, full)]
        return (f"weights, gradients and optimizer take {100 * (1 - static[0] / static[1]):.0f} % "
                f"less, but activations {kept:.0f} % of FFT's, and at this size they weigh most")
    if column == "latency" and arm in ("prompt", "prefix"):
        return "its virtual tokens are real positions, computed or attended to in every call"
    if column == "latency" and arm == "qlora":
        return "the time to rebuild W from its codes is small beside the rest of this call"
    if column == "latency":
        return "the measured overhead is smaller or larger than the word suggests, on this machine"
    if arm == "full":
        return "another method scored higher at equal steps, each at its own learning rate"
    values = measured(results, arm)
    better = "on these tasks it reached FFT" if values["performance"] >= -2 else \
        "on these tasks and steps it stayed behind FFT"
    return f"{better}; the claim speaks of other models and tasks"


def disagreements(results: dict) -> list[str]:
    """A sentence for each claim that the measurement does not bear out."""
    sentences = []
    for arm in results["methods"]:
        values = measured(results, arm)
        for column, claim in zip(COLUMNS, CLAIMED.get(arm, (NO_CLAIM,) * 4)):
            if agrees(column, claim, values[column]) is False:
                sentences.append(f"{RECIPES[arm].label}, {column}: claimed {claim}, measured "
                                 f"{values[column]:.3g}; {reason(results, arm, column)}.")
    return sentences
