"""`minipeft compare`: every method, measured beside claimed."""
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..figures import save_figure
from ..files import RESULTS, write_json
from ..lab import compare, graded, plot, rates, summary
from ..lab.runs import STEPS
from ..recipes import RECIPES
from . import UsageError, add_workers, check_output, count

EXAMPLE = "python -m minipeft compare --methods full lora --tasks elicit --seeds 1"


def arguments(parser) -> None:
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), metavar="METHOD",
                        help=f"of {', '.join(RECIPES)} (default: all; full always runs)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK",
                        help=f"of {', '.join(STEPS)} (default: all; with --quick novel)")
    parser.add_argument("--seeds", type=count, help="runs a method and task (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for compare.json, the pictures and finished runs "
                             "(default: results)")
    add_workers(parser)
    parser.add_argument("--quick", action="store_true",
                        help="one seed, the new task only: under a minute on two cores")
    parser.add_argument("--sweep", action="store_true",
                        help="find the learning rates again: learning_rates.json in --out (long)")
    parser.add_argument("--graded", action="store_true",
                        help="the task of languages in full, every method until its curve is flat "
                             "and at equal numbers of parameters: graded.jsonl in --out (hours)")


def run(args) -> None:
    if args.tasks is None:
        args.tasks = ["novel"] if args.quick else list(STEPS)
    check(args)
    start = time.perf_counter()
    asked = sweep if args.sweep else study if args.graded else compared
    try:
        asked(args, partial(tqdm, file=sys.stderr, dynamic_ncols=True))
    except KeyboardInterrupt:
        print(f"\n{kept(args)}; the same command goes on from there", file=sys.stderr)
        raise
    print(f"in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def compared(args, progress) -> None:
    methods = [arm for arm in RECIPES if arm in args.methods or arm == "full"]
    seeds = 1 if args.quick else 3 if args.seeds is None else args.seeds
    results = compare.compare(methods, args.tasks, seeds, args.out, args.workers,
                              5 if args.quick else 25, progress)
    pictures = plot.compare_pictures(results, args.out)
    print(report(results))
    if "languages" in args.tasks and (runs := graded.read(RESULTS / "languages")):
        print(graded_report(runs))
    print("\nwritten:", ", ".join(str(p) for p in [args.out / "compare.json", *pictures]))


def sweep(args, progress) -> None:
    methods = [arm for arm in RECIPES if arm in args.methods]
    found = rates.sweep(methods, args.tasks, rates.SWEEP_SEEDS, args.out, args.workers, progress)
    path = args.out / rates.LEARNING_RATES.name
    write_json(path, rates.with_stored(found))
    print(sweep_report(found))
    print(f"\nwritten: {path}; to compare at these rates, copy it over {rates.LEARNING_RATES}")


def study(args, progress) -> None:
    runs = graded.study(args.out, args.workers, progress)
    picture = save_figure(partial(plot.graded_figure, runs), args.out / "graded.png")
    print(graded_report(runs))
    print(f"\nwritten: {args.out / graded.LINES}, {picture}")


def kept(args) -> str:
    """How many runs are finished, and where they are."""
    runs, lines = args.out / "runs", args.out / (graded.LINES if args.graded else rates.LINES)
    if not (args.sweep or args.graded):
        return f"{len(list(runs.glob('*.json')))} finished runs are kept in {runs}"
    count = len(lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else 0
    return f"{count} finished runs are kept in {lines}"


def check(args) -> None:
    for kind, known, given in (("method", RECIPES, args.methods),
                               ("task", STEPS, args.tasks)):
        for name in given:
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    if args.graded and (args.sweep or args.quick or args.seeds is not None
                        or len(args.methods) < len(RECIPES) or len(args.tasks) < len(STEPS)):
        raise UsageError("--graded has its own methods, seeds, rates and task: give it --out and "
                         "--workers only")
    if args.sweep and args.seeds is not None:
        raise UsageError(f"a sweep has its own seeds, {', '.join(map(str, rates.SWEEP_SEEDS))}: "
                         f"leave out --seeds")
    check_output(args.out)


def sweep_report(found: dict) -> str:
    """Mean loss and exact match of every rate; the chosen one is marked."""
    lines = []
    for task, chosen in found["chosen"].items():
        for arm, best in chosen.items():
            for lr in RECIPES[arm].grid:
                runs = [r for r in found["runs"]
                        if (r["arm"], r["task"], r["lr"]) == (arm, task, lr)]
                loss = statistics.mean(math.inf if r["loss"] is None else r["loss"] for r in runs)
                score = statistics.mean(r["share"] for r in runs)
                lines.append([task, arm, f"{lr:g}", f"{loss:.4f}", f"{100 * score:.1f} %",
                              "chosen" if lr == best else ""])
    header = ["task", "method", "learning rate", "loss", "learned", ""]
    return summary.layout(header, lines)


def graded_report(runs: list[dict]) -> str:
    return f"""
Eight new languages, share of the bits stored, from the stored study (mean ± sd over n seeds, each
with languages of its own; at the end: steps doubled until the mean gains less than a point)

{summary.graded_table(runs)}

The same at equal numbers of trained parameters

{summary.equal_table(runs)}"""


def report(results: dict) -> str:
    rows = "\n".join(f"    {column}: {unit}" for column, unit in summary.UNITS.items())
    size, seeds = results["costs"]["full"]["trainable"], results["seeds"]
    preset = next(iter(results["full_size"].values()))["preset"]
    return f"""
Claimed | measured, on a GPT of {size:,} parameters, {seeds} seed{'s' * (seeds > 1)}

{summary.summary_table(results)}

{rows}

{disagreements(results)}

Latency, as a ratio to the unadapted model's (median of the rounds, quartiles; one thread). prefill:
64 tokens; decode: one token against their cache; cached: keys and values of the virtual tokens kept

{summary.latency_table(results)}

What a step of training takes, 8 rows of 192 tokens, one thread

{summary.cost_table(results)}

{forgotten(results)}

Reference losses that can be computed
{floors(results)}

The same configurations on {preset}, exact

{summary.full_size_table(results)}"""


def forgotten(results: dict) -> str:
    return "\n\n".join(
        f"Forgotten after {task}, nats per token on each kind of document (mean ± sd of the seeds)"
        f"\n\n{summary.forgetting_table(results, task)}" for task in results["tasks"])


def floors(results: dict) -> str:
    return "\n".join(f"    {task}, {text}: {value:.3f} nats" for task in results["tasks"]
                     for text, value in results["floors"][task].items())


def disagreements(results: dict) -> str:
    sentences = summary.disagreements(results)
    if not sentences:
        return "Every claim agrees with its measurement."
    return "≠  " + "\n≠  ".join(sentences)
