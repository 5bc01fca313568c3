"""The quiz's memory: Leitner's boxes, in one file of the user's.    Leitner 1972

A question is new, or it lies in a box since its last grade and waits there for some days:

    box                  1   2   3   4   5
    due again after      1   2   4   8  16  days

    "y", knew it         one box up; a new question begins in box 2
    "p", partly          the same box; a new question begins in box 1
    "n", not yet         box 1

Before its day a question is not asked, unless one insists; then only "n" moves it, for to know it
after an hour says nothing about next week. In the file a question goes by its id in
data/questions.json: it is the same question whatever its number and its wording.
"""
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from ..files import check_keys, plain, read_json, write_json
from ..folders import locked
from .questions import Question

DAYS = (1, 2, 4, 8, 16)         # which box 1, 2, ... waits
DO = "its grades cannot be read"


@dataclass(frozen=True)
class Entry:
    box: int        # 1 to len(DAYS)
    due: date


def graded(before: Entry | None, grade: str, today: date) -> Entry:
    """Where a question lies after a "y", "p" or "n"; before: None for a new one."""
    if before is not None and grade != "n" and not is_due(before, today):
        return before
    box = 1 if before is None else before.box
    box = {"y": min(box + 1, len(DAYS)), "p": box, "n": 1}[grade]
    return Entry(box, today + timedelta(days=DAYS[box - 1]))


def is_due(entry: Entry, today: date) -> bool:
    """A day further off than any box waits was written under a wrong clock, and is past."""
    return not 0 < (entry.due - today).days <= DAYS[-1]


def order(chosen: list[Question], entries: dict[str, Entry], today: date) -> list[Question]:
    """What to ask: the due ones, the weakest box first and in it what has waited longest; then
    the new ones, in the order of `chosen`; last those that are not due, the nearest first."""
    def rank(question: Question) -> tuple:
        entry = entries.get(question.id)
        if entry is None:
            return (1,)
        return (0, entry.box, entry.due) if is_due(entry, today) else (2, entry.due)
    return sorted(chosen, key=rank)


# ---------------------------------------------------------------- the file


def memory_file(platform: str = sys.platform, environ: Mapping[str, str] = os.environ) -> Path:
    """minipeft/quiz.json where a user's programs keep their data: in $XDG_DATA_HOME, if that is an
    absolute path; else in ~/.local/share, on macOS in ~/Library/Application Support, on Windows in
    %LOCALAPPDATA%. OSError if the user has no home."""
    usual = {"darwin": "~/Library/Application Support",
             "win32": environ.get("LOCALAPPDATA", "~/AppData/Local")}
    folder = Path(environ.get("XDG_DATA_HOME", ""))
    try:
        if not folder.is_absolute():        # to be ignored, says the XDG Base Directory standard
            folder = Path(usual.get(platform, "~/.local/share")).expanduser()
    except RuntimeError:
        raise OSError("this user has no home folder; name one for data in XDG_DATA_HOME") from None
    return folder / "minipeft" / "quiz.json"


def read(path: Path) -> dict[str, Entry]:
    """id: entry of every question that was graded; none if there is no file. ValueError if it is
    damaged."""
    if not path.exists():
        return {}
    return {id: checked(entry, f"{path}: {plain(id)}")
            for id, entry in read_json(path, DO).items()}


def checked(entry, where: str) -> Entry:
    check_keys(entry, {"box": int, "due": str}, where, DO)
    try:
        due = date.fromisoformat(entry["due"])
    except ValueError:
        raise ValueError(f"{where}: due must be a date such as 2026-11-26, got "
                         f"{plain(entry['due'])}; {DO}") from None
    if not 1 <= entry["box"] <= len(DAYS):
        raise ValueError(f"{where}: box must be 1 to {len(DAYS)}, got {entry['box']}; {DO}")
    return Entry(entry["box"], due)


def write(path: Path, entries: dict[str, Entry]) -> None:
    write_json(path, {id: {"box": entry.box, "due": entry.due.isoformat()}
                      for id, entry in entries.items()})


def keep(path: Path, id: str, grade: str, today: date) -> Entry:
    """Grade a question in the file; what another quiz has written there meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):
        entries = read(path)
        entries[id] = graded(entries.get(id), grade, today)
        write(path, entries)
    return entries[id]


def set_aside(path: Path) -> Path:
    """Rename a damaged file; its new name, which no file had."""
    names = (path.with_name(f"quiz.damaged-{n}.json") for n in range(1, sys.maxsize))
    free = next(name for name in names if not name.exists())
    path.rename(free)
    return free
