"""Quality at small scale with many seeds: the tiny world, and SmolLM2 on tool calls.

Both run on the CPU's cores, one thread a run. The repository ships three pretrained bases: with
five seeds, seeds 3 and 4 train again on bases 0 and 1, with other adapters and another order of the
data. That is five trainings, but three models.
"""
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from minipeft import figures
from minipeft.files import write_json
from minipeft.lab import compare, plot, rates
from minipeft.lab.runs import STEPS, Job, run
from minipeft.lab.summary import layout, shares
from minipeft.recipes import RECIPES
from minipeft.tiny_world.pretrain import read_record

TOOL_CALLS = Path(__file__).parents[1] / "tool_calls_study.py"


@dataclass(frozen=True)
class World:
    seeds: int = 5
    steps: int | None = None        # smoke: one run of so few


@dataclass(frozen=True)
class LanguageModel:
    smoke: bool = False             # only say that it takes hours


CASES = {"tiny world": World(), "SmolLM2": LanguageModel()}
SMOKE = {"tiny world": World(1, steps=2), "SmolLM2": LanguageModel(smoke=True)}


def measure(case: World | LanguageModel, where, folder: Path) -> dict:
    """`where` is not asked: runs this small are processes of one CPU thread each."""
    if isinstance(case, LanguageModel):
        return measure_language_model(case, folder)
    return measure_world(case, folder) if case.steps is None else one_run(case)


def one_run(case: World) -> dict:
    job = Job("lora", "elicit", 0, 1e-3, case.steps)
    return {"bases": len(read_record()), "lora elicit, 2 steps": run(job)["loss"]}


def measure_world(case: World, folder: Path) -> dict:
    """The sweep of learning rates again, and the comparison at the rates that are shipped."""
    tasks, methods, workers = list(STEPS), list(RECIPES), os.cpu_count()
    progress = partial(tqdm, file=sys.stderr)
    found = rates.sweep(methods, tasks, rates.SWEEP_SEEDS, folder, workers,
                        progress)
    write_json(folder / "sweep.json", found)
    (folder / "compare").mkdir(parents=True, exist_ok=True)
    results = compare.compare(methods, tasks, case.seeds, folder / "compare", workers,
                              progress=progress)
    plot.compare_pictures(results, folder / "compare")
    return {"bases": len(read_record()), "sweep": "sweep.json", "compare": "compare/compare.json",
            "rates": {f"{task}, {arm}": [chosen, rates.learning_rate(arm, task)]
                      for task, arms in found["chosen"].items() for arm, chosen in arms.items()},
            "learned": {f"{task}, {arm}": shares(results, arm, task)
                            for task in tasks for arm in methods}}


def measure_language_model(case: LanguageModel, folder: Path) -> dict:
    """The study of tool calls, which keeps its own files under `folder`/tool_calls."""
    if case.smoke:
        return {"skipped": "smoke mode: it takes hours, and has a quick mode of its own"}
    subprocess.run([sys.executable, str(TOOL_CALLS), "--workers", str(os.cpu_count()),
                    "--out", str(folder / "tool_calls")], check=True)
    return {"files": "tool_calls"}


def table(results: dict) -> str:
    """Scores of the tiny world with their spread, and the rates that the new sweep would change."""
    world = results["cases"].get("tiny world", {})
    lines = [f"{world.get('bases')} pretrained bases, {world['settings']['seeds']} seeds"]
    rows = [[name, f"{100 * statistics.mean(values):.1f}", f"{100 * statistics.stdev(values):.1f}",
             " ".join(f"{100 * value:.0f}" for value in values)]
            for name, values in world.get("learned", {}).items()]
    lines += [layout(["task, method", "learned, %", "sd", "by seed"], rows)] if rows else []
    lines += [f"{name}: this sweep chose {new:g}, the shipped one {old:g}"
              for name, (new, old) in world.get("rates", {}).items() if new != old]
    lines += [f"{name}: skipped, {found['skipped']}" for name, found in results["cases"].items()
              if "skipped" in found]
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """Every seed's score as a mark."""
    scores = results["cases"]["tiny world"].get("learned", {})
    fig, (ax,) = figures.new_figure()
    for i, values in enumerate(scores.values()):
        ax.plot([i] * len(values), [100 * value for value in values], "o", color=figures.COLOURS[1])
    ax.set_xticks(range(len(scores)), list(scores), rotation=60, fontsize=8)
    ax.set_ylabel("learned, % (a mark a seed)")
    ax.set_title("Tiny world" + (" SMOKE, not evidence" if results["smoke"] else ""))
    return fig
