"""The commands of `python -m minipeft`, one module each:

    EXAMPLE               one command to try
    arguments(parser)     its arguments
    run(args)             results on stdout, progress on stderr

`run` raises UsageError for impossible arguments (exit status 2); ValueError, TypeError, OSError,
FloatingPointError and ImportError end the program with one line and exit status 1. Files that
cannot be written are found out by check_output, before any work.
"""
import contextlib
import os
from pathlib import Path

COMMANDS = {
    "compare": "train every method on the tiny GPT; print what is claimed beside what is measured",
    "pretrain": "pretrain the tiny GPT on the tiny world; print its loss beside the best possible",
    "finetune": "fine-tune SmolLM2 on JSON lines of prompts and completions; writes an adapter",
    "generate": "answer a request with SmolLM2, as it is or with an adapter",
    "merge": "merge an adapter into SmolLM2; writes a plain safetensors model for transformers",
    "memory": "plan a fine-tuning run: what will it take, and does it fit",
    "claims": "check every claim of the lesson: verdict, numbers, source, notebook",
    "quiz": "interview questions, one at a time, graded by yourself",
    "notebooks": "list the notebooks and what each asks; with --execute, run them in place",
    "bench": "time the kernels beside the reference libraries",
}


class UsageError(Exception):
    """The arguments cannot be meant: what was wanted, what was got."""


def check_output(folder: Path) -> None:
    """OSError unless files can be written into `folder`, which need not exist yet.

    Tried by making it and writing a byte (a full disk has room for an empty file); both are undone.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out must be a folder, but {folder} is a file")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
    except OSError as error:
        raise OSError(f"nothing can be written into {folder} ({error.strerror}); name another "
                      f"folder with --out") from None
    finally:
        for undo in (probe.unlink, *(path.rmdir for path in made)):
            with contextlib.suppress(OSError):
                undo()
