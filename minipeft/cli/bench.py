"""`minipeft bench`: timings beside the reference libraries."""
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..lab import bench_decode, bench_nf4, bench_step
from . import check_output

EXAMPLE = "python -m minipeft bench nf4"
BENCHES = {"nf4": bench_nf4, "step": bench_step, "decode": bench_decode}


def arguments(parser) -> None:
    parser.add_argument("what", choices=list(BENCHES),
                        help="nf4: kernels and layers beside bitsandbytes; step, decode: "
                             "SmolLM2's training step, and its tokens/s, beside transformers + "
                             "HF PEFT (installed)")
    parser.add_argument("--out", type=Path, default=Path("results"),
                        help="folder for the JSON and the picture (default: results)")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")


def run(args) -> None:
    check_output(args.out)
    bench = BENCHES[args.what]
    results = bench.run(args.out, args.quick, partial(tqdm, file=sys.stderr, dynamic_ncols=True))
    print(bench.table(results))
