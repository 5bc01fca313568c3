"""Evidence at full size, on a CUDA GPU: what fits, what it costs in time, and what comes out.

    python benchmarks/gpu_evidence.py --part fits latency

Random weights of the exact shapes: nothing is downloaded. Every case runs in a process of its own
and is stored in OUT/<gpu>/<part>.json as soon as it is measured; a second call measures only what
is missing or was measured with other settings. --smoke runs miniatures on any machine, marked as
such in the files, which the results page then ignores.
"""
import argparse
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from gpu import fits, kernels, latency, quality
from tqdm import tqdm

from minipeft.figures import save_figure
from minipeft.files import read_json, write_json
from minipeft.lab import bench_nf4

PARTS = {"fits": fits, "latency": latency, "kernels": kernels, "quality": quality}
RESULTS = Path(__file__).parent / "results"
SMOKE_RESULTS = Path("results")
# Freed memory of one size then serves requests of another: 45 of 48 GiB leave little to waste
ALLOCATOR = "expandable_segments:True"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS),
                      help="what to measure (default: everything)")
    made.add_argument("--smoke", action="store_true",
                      help="miniature shapes on the CPU, seconds: is the script whole?")
    made.add_argument("--out", type=Path, metavar="DIR",
                      help=f"the folder that gets <gpu>/ (default: {RESULTS.parent.name}/results; "
                           f"with --smoke: {SMOKE_RESULTS})")
    return made


def machine(smoke: bool) -> dict:
    """What a number without it means nothing."""
    if smoke:
        return bench_nf4.machine("cpu")
    card = torch.cuda.get_device_properties(0)
    return bench_nf4.machine("cuda") | {"gpu_bytes": card.total_memory, "cuda": torch.version.cuda,
                                        "compute_capability": f"{card.major}.{card.minor}"}


def slug(name: str) -> str:
    """A folder's name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def settings(case) -> dict:
    """The case as a file would give it back."""
    return json.loads(json.dumps(asdict(case)))


def fresh(call: Callable, *arguments):
    """The call's result from a new process: an empty allocator, and its memory gone afterwards."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_flush_denormal,
                             initargs=(True,)) as pool:
        return pool.submit(call, *arguments).result()


def measure_part(name: str, folder: Path, smoke: bool) -> dict:
    """What is stored of a part, after measuring what was missing of it."""
    part, path = PARTS[name], folder / f"{name}.json"
    results = {"smoke": smoke, "machine": machine(smoke), "cases": {}}
    if path.exists():
        results = read_json(path)
    cases, where = (part.SMOKE, "cpu") if smoke else (part.CASES, "cuda")
    missing = {title: case for title, case in cases.items()
               if results["cases"].get(title, {}).get("settings") != settings(case)}
    for title, case in tqdm(missing.items(), file=sys.stderr, desc=name, disable=not missing):
        job = part.measure, case, torch.device(where), folder
        found = job[0](*job[1:]) if smoke else fresh(*job)
        results["cases"][title] = {"settings": settings(case)} | found
        write_json(path, results)
    return results


def draw(name: str, results: dict, folder: Path) -> Path:
    return save_figure(lambda: PARTS[name].figure(results), folder / f"{name}.png")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not args.smoke and not torch.cuda.is_available():
        print("gpu_evidence wants a CUDA GPU and a CUDA build of torch, and finds none here; "
              "--smoke runs miniatures on the CPU", file=sys.stderr)
        return 1
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR)
    name = "smoke" if args.smoke else slug(torch.cuda.get_device_name())
    folder = (args.out or (SMOKE_RESULTS if args.smoke else RESULTS)) / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in args.part:
        results = measure_part(part, folder, args.smoke)
        print(f"\n{part}{' (SMOKE: not evidence)' if args.smoke else ''}, "
              f"{results['machine']['processor']}\n\n{PARTS[part].table(results)}")
        print(f"\nwritten: {folder / part}.json, {draw(part, results, folder)}")
    return 0


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    sys.exit(main())
