"""`minipeft compare`: every method, measured beside claimed."""
import math
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..files import write_json
from ..lab import compare, plot, rates, summary
from ..lab.runs import STEPS, USUAL
from ..recipes import RECIPES
from . import UsageError, check_output

EXAMPLE = "python -m minipeft compare --methods full lora --tasks elicit --seeds 1"


def arguments(parser) -> None:
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), metavar="METHOD",
                        help=f"of {', '.join(RECIPES)} (default: all; full always runs)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK",
                        help=f"of {', '.join(STEPS)} (default: {' '.join(USUAL)}; with --quick "
                             "novel)")
    parser.add_argument("--seeds", type=int, help="runs a method and task (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for compare.json, the pictures and finished runs "
                             "(default: results)")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8),
                        help="processes of one thread each (default: the number of cores)")
    parser.add_argument("--quick", action="store_true",
                        help="one seed, the new task only: under a minute on two cores")
    parser.add_argument("--sweep", action="store_true",
                        help="find the learning rates again: learning_rates.json in --out (long)")


def run(args) -> None:
    args.tasks = args.tasks or (["novel"] if args.quick else list(USUAL))
    check(args)
    start = time.perf_counter()
    progress = partial(tqdm, file=sys.stderr, dynamic_ncols=True)
    methods = [arm for arm in RECIPES if arm in args.methods or (arm == "full" and not args.sweep)]
    seeds = 1 if args.quick else args.seeds or 3
    try:
        if args.sweep:
            found = rates.sweep(methods, args.tasks, rates.SWEEP_SEEDS, args.out, args.workers,
                                progress)
            path = args.out / rates.LEARNING_RATES.name
            write_json(path, rates.with_stored(found))
            print(sweep_report(found))
            print(f"\nwritten: {path}; to compare at these rates, copy it over "
                  f"{rates.LEARNING_RATES}")
            return
        results = compare.compare(methods, args.tasks, seeds, args.out, args.workers,
                                  5 if args.quick else 25, progress)
    except KeyboardInterrupt:
        print(f"\n{kept(args)}; the same command goes on from there", file=sys.stderr)
        raise
    pictures = plot.compare_pictures(results, args.out)
    print(report(results))
    print("\nwritten:", ", ".join(str(p) for p in [args.out / "compare.json", *pictures]))
    print(f"in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def kept(args) -> str:
    """How many runs are finished, and where they are."""
    runs, lines = args.out / "runs", args.out / rates.LINES
    if not args.sweep:
        return f"{len(list(runs.glob('*.json')))} finished runs are kept in {runs}"
    count = len(lines.read_text(encoding="utf-8").splitlines()) if lines.exists() else 0
    return f"{count} finished runs are kept in {lines}"


def check(args) -> None:
    for kind, known, given in (("method", RECIPES, args.methods),
                               ("task", STEPS, args.tasks)):
        for name in given:
            if name not in known:
                raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    if args.sweep and args.seeds is not None:
        raise UsageError(f"a sweep has its own seeds, {', '.join(map(str, rates.SWEEP_SEEDS))}: "
                         f"leave out --seeds")
    if (args.seeds is not None and args.seeds < 1) or args.workers < 1:
        raise UsageError(f"--seeds and --workers must be at least 1, got {args.seeds} and "
                         f"{args.workers}")
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


def report(results: dict) -> str:
    rows = "\n".join(f"    {column}: {unit}" for column, unit in summary.UNITS.items())
    floors = "\n".join(f"    {task}, {text}: {value:.3f} nats" for task in results["tasks"]
                       for text, value in results["floors"][task].items())
    size, seeds = results["costs"]["full"]["trainable"], results["seeds"]
    preset = next(iter(results["full_size"].values()))["preset"]
    return f"""
Claimed | measured, on a GPT of {size:,} parameters, {seeds} seed{'s' * (seeds > 1)}

{summary.summary_table(results)}

{rows}

{disagreements(results)}

What each method costs (batch {results['batch']}, one thread; forgetting: nats per token, on
documents of pretraining, after {results['tasks'][-1]})

{summary.cost_table(results)}

Reference losses that can be computed
{floors}

The same configurations on {preset}, exact

{summary.full_size_table(results)}"""


def disagreements(results: dict) -> str:
    sentences = summary.disagreements(results)
    if not sentences:
        return "Every claim agrees with its measurement."
    return "≠  " + "\n≠  ".join(sentences)
