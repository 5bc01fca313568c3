"""The summary table that everyone repeats, claimed beside measured.

A claim in words agrees when the measured number lies in the range that RULES gives it.
"""
import math
import statistics

from ..recipes import RECIPES
from ..tiny_world.documents import KINDS
from ..tiny_world.languages import Languages
from . import capacity, graded

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
    ("performance", "good"): (-10, math.inf), ("performance", "lower"): (-math.inf, -2),
}
UNITS = {
    "updates": "share of all parameters that is trained; FFT, full fine-tuning, trains all",
    "latency": "time beyond the unadapted model's, one row: to read 64 tokens, to write one more "
               "(LoRA merged); the larger is judged",
    "memory": "bytes of weights, gradients, optimizer and activations in a step of 8 x 192 tokens, "
              "against FFT's",
    "performance": "learned in this budget of steps: exact match; of languages, the share of the "
                   "bits; mean ± sd over the seeds; the worst task is judged",
}


def spread(values: list[float]) -> tuple[float, float]:
    """(mean, standard deviation); one value has deviation 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def mean_sd(values: list[float], digits: int, sign: str = "") -> str:
    """"46±17": mean and standard deviation; of one value the value, for it shows no deviation.

    sign: "+" writes that of a positive mean, too
    """
    mean, deviation = spread(values)
    return f"{mean:{sign}.{digits}f}" + (f"±{deviation:.{digits}f}" if len(values) > 1 else "")


def shares(results: dict, arm: str, task: str) -> list[float]:
    """How much of the task each seed has learned: exact match, or bits stored of all bits."""
    return [run["share"] for run in results["runs"] if (run["arm"], run["task"]) == (arm, task)]


def usual_form(arm: str) -> str:
    """The form whose latency is compared, unless another is asked for."""
    return "merged" if arm == "lora" else "as trained"


def latency_overhead(results: dict, arm: str, phase: str = "prefill", rows: int = 1,
                     form: str | None = None) -> float:
    """Percent of the unadapted model's time on top, median of the ratios; LoRA merged unless asked
    otherwise."""
    form = usual_form(arm) if form is None else form
    ratio = results["costs"][arm]["latency"][f"{form}, {phase}, {rows}"]["ratio"]
    return 100 * (ratio["median"] - 1)


def latencies(results: dict, arm: str, form: str | None = None) -> list[float]:
    """Percent on top of prefill and of decode, one row."""
    return [latency_overhead(results, arm, phase, form=form) for phase in ("prefill", "decode")]


def times(percents_: list[float]) -> str:
    return ", ".join(f"{round(value):+d}" for value in percents_) + " %"


def served(results: dict, arm: str) -> list[str]:
    """The forms in which the arm's model was timed."""
    return list(dict.fromkeys(key.split(",")[0] for key in results["costs"][arm]["latency"]))


def measured(results: dict, arm: str) -> dict[str, float]:
    """The number behind each column, in percent; performance: points against FFT, worst task."""
    cost, full = results["costs"][arm], results["costs"]["full"]
    rivals = ["full"] if arm != "full" else results["methods"]
    gaps = [statistics.mean(shares(results, arm, task))
            - max(statistics.mean(shares(results, rival, task)) for rival in rivals)
            for task in results["tasks"]]
    return {"updates": 100 * cost["trainable"] / cost["parameters"],
            "latency": max(latencies(results, arm)),
            "memory": 100 * (1 - sum(cost["bytes"].values()) / sum(full["bytes"].values())),
            "performance": 100 * min(gaps)}


def agrees(column: str, claim: str, value: float) -> bool | None:
    """Whether the number lies in the claim's range; None where there is no claim."""
    if claim == NO_CLAIM:
        return None
    low, high = RULES[column, claim]
    return low <= value <= high


def performance(results: dict, arm: str) -> str:
    return ", ".join(mean_sd([100 * share for share in shares(results, arm, task)], 0)
                     for task in results["tasks"])


def cells(results: dict, arm: str) -> list[tuple[str, str, str]]:
    """(claimed, sign, measured) of each column; the sign marks a disagreement."""
    values = measured(results, arm)
    texts = {"updates": f"{values['updates']:.3g} %", "latency": times(latencies(results, arm)),
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
        COLUMNS, ("measured", "prefill, decode", "to train", f"learned, %: {tasks}")))]
    rows = [[RECIPES[arm].label, *(f"{claim:>14} |{sign}{value}" for claim, sign, value
                                in cells(results, arm))] for arm in results["methods"]]
    return layout(header, rows)


def markdown_table(results: dict) -> str:
    """The same for a page."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for arm in results["methods"]:
        row = [f"{claim} → {sign.strip()} **{value}**" for claim, sign, value
               in cells(results, arm)]
        if len(served(results, arm)) > 1:          # every form of the arm that was timed
            row[1] += "; " + "; ".join(f"{form} {times(latencies(results, arm, form))}"
                                       for form in served(results, arm))
        lines.append(f"| {RECIPES[arm].label} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def cost_table(results: dict) -> str:
    """Parameters, bytes and seconds to train, method by method."""
    header = ["method", "trained", "file", "weights", "gradients", "optimizer", "activations",
              "step", "restored"]
    rows = []
    for arm in results["methods"]:
        cost, runs = results["costs"][arm], [r for r in results["runs"] if r["arm"] == arm]
        rows.append([RECIPES[arm].label, f"{cost['trainable']:,}", kilo(cost["file_bytes"]),
                     *map(kilo, cost["bytes"].values()), f"{1e3 * cost['step']['median']:.0f} ms",
                     "bitwise" if all(r["restored"] for r in runs) else "no"])
    return layout(header, rows)


def latency_table(results: dict) -> str:
    """Ratios to the unadapted model, a row a form; of the unadapted model itself, milliseconds."""
    keys = [(phase, rows) for rows in (1, 32) for phase in ("prefill", "decode")]
    header = ["method", *(f"{phase}, batch {rows}" for phase, rows in keys)]
    lines = []
    for arm in results["methods"]:
        latency = results["costs"][arm]["latency"]
        for form in served(results, arm):
            found = [latency[f"{form}, {phase}, {rows}"] for phase, rows in keys]
            lines.append([f"{RECIPES[arm].label}, {form}", *(
                f"{1e3 * time['seconds']['median']:.2f} ms" if arm == "full" else
                "{median:.2f} ({low:.2f} to {high:.2f})".format(**time["ratio"])
                for time in found)])
    return layout(header, lines)


def forgetting_table(results: dict, task: str) -> str:
    """Rise of the loss after learning the task, nats per token, a column a kind of document."""
    header = ["method", *KINDS, "norm of the update"]
    rows = []
    for arm in results["methods"]:
        runs = [r for r in results["runs"]
                if (r["arm"], r["task"]) == (arm, task) and r["loss"] is not None]
        if runs:
            norms = [r["update_norm"] for r in runs]
            rises = (mean_sd([r["forgetting"][kind] for r in runs], 2, "+") for kind in KINDS)
            rows.append([RECIPES[arm].label, *rises,
                         "-" if None in norms else f"{statistics.mean(norms):.1f}"])
    return layout(header, rows)


def graded_table(runs: list[dict]) -> str:
    """Speed and what is held at the end, of the task of languages, from the stored study."""
    header = ["method", "trained", f"in {graded.FAST} steps", "at the end", "steps", "flat"]
    rows = []
    for arm, recipe in RECIPES.items():
        fast = graded.learned(runs, arm, graded.FAST)
        steps, last, flat = graded.at_the_end(runs, arm)
        if fast and last:
            rows.append([recipe.label, f"{trained(runs, arm):,}", percents(fast), percents(last),
                         f"{steps:,}", "yes" if flat else "no"])
    return layout(header, rows)


def equal_table(runs: list[dict]) -> str:
    """The same task at equal numbers of trained parameters."""
    header = ["trained, about", "method", "size", "trained", f"in {graded.FAST} steps"]
    rows = []
    for about, arms in graded.EQUAL.items():
        for arm, size in arms:
            stored = graded.stored_size(arm, size)
            if fast := graded.learned(runs, arm, graded.FAST, stored):
                rows.append([f"{about:,}", RECIPES[arm].label, str(size),
                             f"{trained(runs, arm, stored):,}", percents(fast)])
    return layout(header, rows)


def trained(runs: list[dict], arm: str, size: int | None = None) -> int:
    return next(r["trainable"] for r in runs if (r["arm"], r["size"]) == (arm, size))


def percents(shares_: list[float]) -> str:
    """"46±17 % (n 3)" """
    return f"{mean_sd([100 * share for share in shares_], 1)} % (n {len(shares_)})"


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
        return ("its virtual tokens are real positions: computed or attended to in every call, "
                "unless their keys and values are kept (cached, in the table of latencies)")
    if column == "latency" and arm == "qlora":
        return "the time to rebuild W from its codes is small beside the rest of this call"
    if column == "latency":
        return "the measured overhead is smaller or larger than the word suggests, on this machine"
    if arm == "full":
        return "another method scored higher in this budget, each at its own learning rate"
    values = measured(results, arm)
    if values["performance"] >= -2:
        return "in this budget it reached FFT; the claim speaks of other models and tasks"
    worst = min(results["tasks"], key=lambda task: statistics.mean(shares(results, arm, task))
                - statistics.mean(shares(results, "full", task)))
    return (f"points behind FFT on {worst} after {results['steps'][worst]} steps, each at its own "
            f"learning rate: speed, not yet what the method can hold")


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


def capacity_table(runs: list[dict]) -> str:
    """Share of the bits of K languages at the end, a row an arm, a column a K."""
    header = ["arm", "trained", *(f"K = {K}, {Languages(K).bits:,.0f} bits"
                                  for K in capacity.OFFERED)]
    rows = []
    for name, arm in capacity.ARMS.items():
        found = [capacity.ends(runs, name, K) for K in capacity.OFFERED]
        if any(found):
            count = next(ends[0]["trainable"] for ends in found if ends)
            rows.append([arm.label, f"{count:,}", *map(end_of, found)])
    return layout(header, rows)


def end_of(ends: list[dict]) -> str:
    """"87.9±2.1 % (3,200, n 3)" """
    if not ends:
        return "not run"
    share = mean_sd([100 * end["share"] for end in ends], 1)
    rising = "" if all(end["flat"] for end in ends) else ", rising"
    steps = max(end["steps"] for end in ends)
    return f"{share} % ({steps:,}, n {len(ends)}{rising})"


def density_table(runs: list[dict]) -> str:
    """Bits per trained parameter of the arms that are full."""
    rows = []
    for name, arm in capacity.ARMS.items():
        if found := capacity.capacity(runs, name):
            rows.append([arm.label, mean_sd(found, 2), f"{len(found)}"])
    return layout(["arm", "bits per trained parameter", "n"], rows) if rows else "(none is full)"
