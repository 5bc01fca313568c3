"""SmolLM2 on tool calls: what a run of that study is, which rate it takes, and what came out.

    python benchmarks/tool_calls_study.py        a line a run in OUT/runs.jsonl (hours)

Rates are chosen on the validation set, whose phrasings and values occur neither in training nor in
the test; sweeps have seeds of their own. What is reported is scored on the test requests after the
last step: no checkpoint is picked.
"""
from dataclasses import dataclass
from pathlib import Path

from ..adapter import check_choice
from ..recipes import RECIPES
from .rates import loss_of, record
from .runs import NUMBER
from .study import read_lines

LINES = "runs.jsonl"             # in the folder of the study
VERSION = 1                      # of it, see study.py
KINDS = ("form", "stop", "name", "values")     # of an answer's tokens, and of errors
TRAINING = 2000                  # examples of the whole training set
SWEEP_SEEDS = (100, 101)         # no seed of a report
WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
VECTORS = (5e-3, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0, 2.0)
# Peak learning rates, from small to large; methods with the same grid are tried at the same rates
GRIDS = {"lora": WEIGHTS, "qlora": WEIGHTS, "houlsby": WEIGHTS, "prompt": VECTORS,
         "prefix": VECTORS, "full": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)}
FIRST = {WEIGHTS: 3, VECTORS: 3, GRIDS["full"]: 3}     # number of the rate in the middle at first

MAYBE = type(None)
RESULT = {"trainable": int, "bytes": {"weights": int, "training": int}, "machine": {},
          "seconds_per_step": (*NUMBER, MAYBE), "curve": list, "loss": (*NUMBER, MAYBE),
          "validation": (list, MAYBE), "docstrings": (*NUMBER, MAYBE), "test": (list, MAYBE),
          "test_loss": (*NUMBER, MAYBE), "errors": (list, MAYBE), "answers": (list, MAYBE)}
JOB = {"method": str, "lr": NUMBER, "seed": int, "steps": int, "dtype": str, "examples": int,
       "ordinary": int, "requests": (int, MAYBE), "split": str}


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
