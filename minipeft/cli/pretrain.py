"""`minipeft pretrain`: the tiny GPT on the tiny world."""
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..folders import locked
from ..tiny_world import pretrain
from . import UsageError, check_output, seed

EXAMPLE = "python -m minipeft pretrain --seed 3 --out /tmp/base"


def arguments(parser) -> None:
    parser.add_argument("--seed", type=seed, default=0, help="of the weights and the documents")
    parser.add_argument("--steps", type=int, default=pretrain.STEPS,
                        help=f"default: {pretrain.STEPS}")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for the weights and their record (default: results)")


def run(args) -> None:
    if args.steps < 1:
        raise UsageError(f"--steps must be at least 1, got {args.steps}")
    check_output(args.out)
    progress = partial(tqdm, total=args.steps, unit="step", file=sys.stderr, dynamic_ncols=True)
    model, report = pretrain.pretrain(args.seed, args.steps, progress)
    args.out.mkdir(parents=True, exist_ok=True)
    with locked(args.out, wait=True):       # several seeds may be made at once, for one record
        path = pretrain.save_base(model, report, args.seed, args.out)
    print(f"{'documents':<14}{'loss':>8}{'best possible':>16}   (nats per token)")
    for kind, score in report["validation"].items():
        print(f"{kind:<14}{score['loss']:>8.3f}{score['oracle']:>16.3f}")
    print(f"written: {path}, {path.stat().st_size / 1e6:.1f} MB, in {report['seconds']:.0f} s; "
          f'minipeft.tiny_world.pretrain.load_base({args.seed}, "{args.out}") loads it')
