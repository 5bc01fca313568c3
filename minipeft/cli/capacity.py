"""`minipeft capacity`: how many bits an adapter holds."""
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..figures import save_figure
from ..files import RESULTS
from ..lab import capacity, plot, summary
from . import UsageError, add_workers, check_output

EXAMPLE = "python -m minipeft capacity --arms lora-1-qv lora-1 full --languages 2 8"
QUICK = dict(arms=("lora-1-qv", "full"), offered=(2,), most_steps=200)


def arguments(parser) -> None:
    parser.add_argument("--arms", nargs="+", default=list(capacity.ARMS), metavar="ARM",
                        help=f"of {', '.join(capacity.ARMS)} (default: all)")
    parser.add_argument("--languages", nargs="+", type=int, default=list(capacity.OFFERED),
                        metavar="K", help=f"numbers of new languages, of "
                        f"{', '.join(map(str, capacity.OFFERED))} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("results/capacity"),
                        help="folder for capacity.jsonl, a line a run, and the picture; finished "
                             "runs in it are not done again (default: results/capacity)")
    add_workers(parser)
    parser.add_argument("--quick", action="store_true",
                        help="two arms, two languages, few steps, at the stored study's rates: "
                             "under two minutes on two cores")


def run(args) -> None:
    check(args)
    start = time.perf_counter()
    try:
        runs = capacity.study(args.out, args.workers, partial(tqdm, file=sys.stderr,
                                                              dynamic_ncols=True), **asked(args))
    except KeyboardInterrupt:
        count = len(capacity.read(args.out))
        print(f"\n{count} finished runs are kept in {args.out / capacity.LINES}; the same command "
              f"goes on from there", file=sys.stderr)
        raise
    picture = save_figure(partial(plot.capacity_figure, runs), args.out / "capacity.png")
    print(report(runs))
    print(f"\nwritten: {args.out / capacity.LINES}, {picture}")
    print(f"in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def asked(args) -> dict:
    if args.quick:
        return QUICK | dict(swept=capacity.read(RESULTS / "capacity"))
    return dict(arms=tuple(arm for arm in capacity.ARMS if arm in args.arms),
                offered=tuple(K for K in capacity.OFFERED if K in args.languages))


def report(runs: list[dict]) -> str:
    return f"""Languages offered, and the share of their bits that each arm stores at the end
(steps, n seeds; rising: twice the steps still gave a point, or it has not begun)

{summary.capacity_table(runs)}

Bits per trained parameter of the arms that are full: flat, less than {capacity.KNEE[1]:.0%} stored

{summary.density_table(runs)}"""


def check(args) -> None:
    for what, known, given in (("arm", capacity.ARMS, args.arms),
                               ("number of languages", capacity.OFFERED, args.languages)):
        for value in given:
            if value not in known:
                raise UsageError(f"unknown {what} {value!r}; known: {', '.join(map(str, known))}")
    if args.quick and (set(args.arms) < set(capacity.ARMS)
                       or set(args.languages) < set(capacity.OFFERED)):
        raise UsageError("--quick has its own arms and languages: give it --out and --workers only")
    check_output(args.out)
