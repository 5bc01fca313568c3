"""`minipeft notebooks`: what each asks; or execute them and store what came out."""
import re
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..course.execute import execute
from ..files import NOTEBOOKS, read_json
from . import UsageError

EXAMPLE = "python -m minipeft notebooks --execute 03 05"


def arguments(parser) -> None:
    parser.add_argument("numbers", nargs="*", metavar="NN", help="such as 03 (default: all)")
    parser.add_argument("--execute", action="store_true",
                        help="run every cell and store the outputs in place; a cell that fails or "
                             "warns leaves its notebook as it was")


def run(args) -> None:
    for path in chosen(args.numbers):
        if args.execute:
            execute_and_report(path)
        else:
            print(f"{path.name:<32}{questions().get(path.name, '')}")


def chosen(numbers: list[str]) -> list[Path]:
    """The notebooks of these numbers, in the course's order; all, if none is given."""
    known = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if not known:
        raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}: they come with a checkout of the "
                                f"repository")
    for number in numbers:
        if not number or number.zfill(2) not in known:
            raise UsageError(f"unknown notebook {number!r}; known: {', '.join(known)}")
    wanted = {number.zfill(2) for number in numbers} if numbers else known
    return [path for number, path in known.items() if number in wanted]


def questions() -> dict[str, str]:
    """What each notebook asks, from the table in notebooks/README.md."""
    table = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| \[[^]]*\]\(([^)]*)\) \| ([^|]*?) \|", table, flags=re.MULTILINE))


def execute_and_report(path: Path) -> None:
    timed = read_json(NOTEBOOKS / "timed_cells.json")
    start = time.perf_counter()
    changed = execute(path, partial(tqdm, desc=path.name, unit="cell", file=sys.stderr,
                                    dynamic_ncols=True, leave=False))
    names = [f"{name} (timed)" if name in timed.get(path.stem, []) else name for name in changed]
    print(f"{path.name:<32}{time.perf_counter() - start:>4.0f} s   "
          f"{'new output of ' + ', '.join(names) if names else 'as stored'}", flush=True)
