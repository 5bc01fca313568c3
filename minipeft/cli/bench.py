"""`minipeft bench`: timings beside the reference libraries."""
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from .. import bench_nf4

EXAMPLE = "python -m minipeft bench nf4"


def arguments(parser) -> None:
    parser.add_argument("what", choices=["nf4"], help="nf4: quantize, dequantize, gemv")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for the JSON and the picture (default: results)")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")


def run(args) -> None:
    progress = partial(tqdm, file=sys.stderr, dynamic_ncols=True)
    results = bench_nf4.run(args.out, args.quick, progress)
    print(bench_nf4.table(results))
