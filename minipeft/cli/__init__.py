"""The commands of `python -m minipeft`, one module each:

    EXAMPLE               one command to try
    arguments(parser)     its arguments
    run(args)             results on stdout, progress on stderr

`run` raises UsageError for impossible arguments (exit status 2); ValueError, TypeError, OSError,
FloatingPointError and ImportError end the program with one line and exit status 1. Files that
cannot be written are found out by check_output, before any work.
"""
import argparse
import os
import re
from pathlib import Path

from ..folders import check_writable

MAX_SEED = 2**32 - 1

COMMANDS = {
    "compare": "train every method on the tiny GPT; print what is claimed beside what is measured",
    "capacity": "count the bits that adapters of several sizes hold, and the steps they take",
    "pretrain": "pretrain the tiny GPT on the tiny world; print its loss beside the best possible",
    "finetune": "fine-tune SmolLM2, or your own model, on JSON lines; writes an adapter",
    "generate": "answer a request with a model, as it is or with an adapter",
    "merge": "merge an adapter into its model; writes a plain safetensors model for transformers",
    "memory": "plan a fine-tuning run: what will it take, and does it fit",
    "claims": "judge what courses say about PEFT: verdict, numbers, source, notebook",
    "quiz": "interview questions, graded by yourself and remembered, or as flash cards for Anki",
    "notebooks": "list the notebooks and what each asks; with --execute, run them in place",
    "course": "the course without its answers: hand it out, see how far you are, grade a class",
    "bench": "time the kernels beside the reference libraries",
}


class UsageError(Exception):
    """The arguments cannot be meant: what was wanted, what was got."""


def check_output(folder: Path) -> None:
    """OSError unless files can be written into `folder`; UsageError if a file stands for the
    folder, or a folder for a file."""
    try:
        check_writable(folder)
    except (NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(str(error)) from None


def cores() -> int:
    """How many the machine has, as far as Python can tell."""
    found = os.cpu_count()
    return 1 if found is None else found


def add_workers(parser) -> None:
    """--workers, of a command that shares its runs among processes."""
    parser.add_argument("--workers", type=count, default=min(cores(), 8),
                        help="processes of one thread each (default: the number of cores)")


def count(text: str) -> int:
    """The type of a number of things, at least 1, for argparse."""
    if not re.fullmatch(r"[0-9]*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """The type of every --seed, for argparse."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"a seed must be a whole number, 0 to {MAX_SEED}, got "
                                         f"{text!r}")
    return int(text)
