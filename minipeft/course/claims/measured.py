"""What cannot be computed: losses, timings, forgetting. Stored, and made again on demand.

    FOLDER/compare/compare.json     python -m minipeft compare --out FOLDER/compare
    FOLDER/claims.json              what no other command measures
    python -m minipeft claims --remeasure --out FOLDER makes both

Two studies that take hours, and what needs the real libraries, are read where they are stored:

    RESULTS/languages       python -m minipeft compare --graded
    RESULTS/tool_calls      python benchmarks/tool_calls_study.py
    RESULTS/decode.json     python -m minipeft bench decode --out benchmarks/results
"""
from dataclasses import dataclass
from pathlib import Path

import torch

from ...files import RESULTS, read_json, write_json
from ...gpt import GPT
from ...lab import compare, graded, tool_calls
from ...lab.rates import learning_rate
from ...lab.runs import BATCH, STEPS
from ...recipes import RECIPES
from ...tiny_world.pretrain import load_base
from ...tiny_world.tasks import TASKS
from ...train import TrainConfig, evaluate, train

STORED = RESULTS
FILES = {"compare/compare.json": {"runs": list, "costs": {}, "tasks": list, "methods": list,
                                  "full_size": {}, "floors": {}, "seeds": int, "batch": int,
                                  "sweep": list},
         "claims.json": {"energy": (float, int), "update": {}, "width": int,
                         "exact_match": (float, int)}}
ENERGY = 0.9                # share of an update's squared norm that its rank must hold


@dataclass(frozen=True)
class Measurements:
    compare: dict          # compare.compare's results
    ranks: dict            # ranks()'s
    graded: list[dict]     # the runs of graded.study
    calls: list[dict]      # those of SmolLM2 on tool calls
    decode: dict           # of bench_decode


def stored(folder: Path = STORED) -> Measurements:
    """FileNotFoundError says how to make what is missing."""
    for name in FILES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"no measurements in {folder / name}; make them with: "
                                    f"python -m minipeft claims --remeasure")
    again = "restore it, or make it with: python -m minipeft claims --remeasure"
    return Measurements(*(read_json(folder / name, again, keys=keys)
                          for name, keys in FILES.items()), *elsewhere())


def elsewhere() -> tuple[list[dict], list[dict], dict]:
    """What is read where it is stored; FileNotFoundError says how to make what is missing."""
    found = []
    for study, folder, command in (
            (graded, "languages", "python -m minipeft compare --graded"),
            (tool_calls, "tool_calls", "python benchmarks/tool_calls_study.py")):
        found.append(study.read(RESULTS / folder))
        if not found[-1]:
            raise FileNotFoundError(f"no study in {RESULTS / folder / study.LINES}; make it with: "
                                    f"{command}")
    decode = read_json(RESULTS / "decode.json", "make it with: python -m minipeft bench decode",
                       keys={"cases": list})
    return *found, decode


def remeasure(folder: Path, seeds: int, workers: int, progress=None) -> Measurements:
    """Everything once more, into `folder`; finished runs of `compare` in it are kept."""
    (folder / "compare").mkdir(parents=True, exist_ok=True)
    results = compare.compare(list(RECIPES), list(STEPS), seeds, folder / "compare",
                              workers, progress=progress)
    found = ranks(progress)
    write_json(folder / "claims.json", found)
    return Measurements(results, found, *elsewhere())


def ranks(progress=None) -> dict:
    """How much rank full fine-tuning's own update has.

    One seed, the task NOVEL. `update` has, for each linear, how many singular directions hold
    ENERGY of the update's squared norm.
    """
    torch.manual_seed(0)
    base = load_base(0)
    before = {name: W.clone() for name, W in matrices(base).items()}
    exact_match = score(base, learning_rate("full", "novel"), progress)
    update = {name: energy_rank(W - before[name]) for name, W in matrices(base).items()}
    return dict(machine=compare.machine(), energy=ENERGY, update=update,
                width=base.config.hidden_size, exact_match=exact_match)


def matrices(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()
            if name.endswith("proj.weight")}


def score(model, lr: float, progress) -> float:
    """Exact match after learning NOVEL at this rate."""
    task, steps = TASKS["novel"], STEPS["novel"]
    train(model, task.batches(steps, BATCH, 0), TrainConfig(lr=lr), steps, progress)
    return evaluate(model, task.prompts(256, "report"))[1]


def energy_rank(delta: torch.Tensor) -> int:
    """The fewest singular directions that hold ENERGY of the squared norm."""
    energy = torch.linalg.svdvals(delta.double()).square().cumsum(0)
    return int((energy < ENERGY * energy[-1]).sum()) + 1
