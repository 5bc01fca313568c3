"""`minipeft claims`: what courses say about PEFT, checked where it can be."""
import json
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..course import claims
from ..course.claims import report
from . import check_output, cores, count

EXAMPLE = "python -m minipeft claims --markdown"


def arguments(parser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a markdown table")
    form.add_argument("--json", action="store_true", help="print JSON: id, claim, verdict, value, "
                                                          "source, notebook")
    form.add_argument("--page", action="store_true", help="print benchmarks/CLAIMS.md: measured "
                                                          "values as ranges")
    parser.add_argument("--remeasure", action="store_true",
                        help="measure afresh what is not computed (minutes), in place of reading "
                             "the stored results")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for what --remeasure measures (default: results)")
    parser.add_argument("--seeds", type=count, default=3, help="of --remeasure (default: 3)")


def run(args) -> None:
    if args.remeasure:
        check_output(args.out)
    progress = partial(tqdm, file=sys.stderr, dynamic_ncols=True)
    measurements = (claims.remeasure(args.out, args.seeds, min(cores(), 8), progress)
                    if args.remeasure else claims.stored())
    rows = report.evaluate(claims.CLAIMS, measurements, partial(progress, leave=False))
    print(formatted(rows, args))
    failed = [row.claim.id for row in rows if not row.holds]
    if failed:
        raise ValueError(f"the checks of claims {', '.join(map(str, failed))} failed")


def formatted(rows: list, args) -> str:
    if args.json:
        return json.dumps([row.as_dict() for row in rows], indent=1)
    if args.page:
        return report.page(rows).rstrip("\n")
    return report.markdown(rows) if args.markdown else report.text(rows)
