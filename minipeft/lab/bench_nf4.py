"""How fast NF4 is here, beside bitsandbytes (where installed), torch and a plain copy.

Contenders of one case take turns, so that a drift of the machine hits all alike; only ratios within
a case mean anything. A new output costs its page faults (4 bytes a weight), so dequantizing is
timed both with one and into a given buffer. gemv takes each matrix from a set too large for caches.
"""
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from time import perf_counter, sleep

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ..figures import COLOURS, save_figure
from ..files import CHECKOUT, write_json
from ..measure import Timing, summary, synchronize
from ..nf4 import backend_for, dequantize_nf4, gemv, quantize_nf4

try:
    import bitsandbytes.functional as bnb
except ImportError:         # an optional peer: the table then lacks its rows, and says so
    bnb = None

OURS, PEER = "minipeft", "bitsandbytes"
SHAPES = ((4096, 4096), (576, 1536))        # a 7B model's attention, SmolLM2's MLP
QUICK_SHAPES = ((512, 512),)
SET_BYTES = 2**29                           # that gemv's matrices fill together, of each contender
QUICK_SET_BYTES = 2**22
PAUSE_SECONDS = 0.02
FIRST_USE = """
import time, torch
weight, x = torch.randn(256, 256), torch.randn(256)
start = time.perf_counter()
from minipeft.nf4 import quantize_nf4, dequantize_nf4, gemv
packed, state = quantize_nf4(weight)
dequantize_nf4(packed, state), gemv(packed, state, x)
print(time.perf_counter() - start)
"""


def run(out: Path, quick: bool = False, progress=None) -> dict:
    """Measure, write nf4_cpu.json and .png (or nf4_cuda) into the folder `out`, return the data."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, rounds = (QUICK_SHAPES, 3) if quick else (SHAPES, 7)
    set_bytes = QUICK_SET_BYTES if quick else SET_BYTES
    torch.manual_seed(0)
    results = {"machine": machine(device), "backend": backend_for(device), "rounds": rounds,
               "cases": []}
    for shape in shapes:
        for operation, dtype, contenders in cases(shape, device, set_bytes):
            timings = in_turn(contenders, rounds, progress)
            results["cases"].append({
                "operation": operation, "shape": list(shape), "dtype": str(dtype)[6:],
                "seconds": {name: timing.as_dict() for name, timing in timings.items()}})
    results["first_use_seconds"] = first_use()
    write(results, out, f"nf4_{device}")
    return results


def cases(shape: tuple[int, int], device: str, set_bytes: int):
    """(operation, dtype, {contender: call}) one after the other: a case's memory dies with it."""
    for dtype, nested in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        weight = torch.randn(shape, device=device).to(dtype)
        name = " + double quantization" if nested else ""
        yield "quantize" + name, dtype, quantizers(weight, nested)
        yield "dequantize" + name, dtype, dequantizers(weight, nested)
    yield "gemv", torch.float32, multipliers(torch.randn(shape, device=device), set_bytes)


def in_turn(calls: dict[str, Callable], rounds: int, progress) -> dict[str, Timing]:
    """Time each call once a round after one warm-up.

    The pause lets torch's threads fall asleep: for some milliseconds after a call of torch's they
    spin on the core that the next contender needs.
    """
    seconds = {name: [] for name in calls}
    for number in (progress(range(rounds + 1)) if progress else range(rounds + 1)):
        for name, call in calls.items():
            sleep(PAUSE_SECONDS)
            start = perf_counter()
            call()
            synchronize()
            if number:
                seconds[name].append(perf_counter() - start)
    return {name: summary(values) for name, values in seconds.items()}


def quantizers(weight: Tensor, nested: bool) -> dict[str, Callable]:
    """weight -> codes; the copy shows what moving the bytes alone takes."""
    buffer = torch.empty_like(weight)
    calls = {OURS: lambda: quantize_nf4(weight, compress_statistics=nested)}
    if bnb:
        calls[PEER] = lambda: bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4",
                                                compress_statistics=nested)
    return calls | {"copy": lambda: buffer.copy_(weight)}


def dequantizers(weight: Tensor, nested: bool) -> dict[str, Callable]:
    """codes -> weight, into a buffer and into new memory."""
    buffer = torch.empty_like(weight)
    packed, state = quantize_nf4(weight, compress_statistics=nested)
    calls = {OURS: lambda: dequantize_nf4(packed, state, out=buffer),
             f"{OURS}, new output": lambda: dequantize_nf4(packed, state)}
    if bnb:
        theirs, their_state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4",
                                                compress_statistics=nested)
        calls[f"{PEER}, new output"] = lambda: bnb.dequantize_4bit(theirs, their_state)
    return calls | {"copy": lambda: buffer.copy_(weight)}


def multipliers(weight: Tensor, set_bytes: int) -> dict[str, Callable]:
    """y = W x at batch 1: from codes, by dequantizing first, and with 32- and 16-bit weights."""
    x = torch.randn(weight.shape[1], device=weight.device)
    x16 = x.bfloat16()
    packed, state = quantize_nf4(weight)
    codes, full, half = (next_of(w, set_bytes) for w in (packed, weight, weight.bfloat16()))
    calls = {OURS: lambda: gemv(codes(), state, x)}
    if bnb:
        theirs, their_state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        next_theirs = next_of(theirs, set_bytes)
        calls[f"{PEER}, dequantize + F.linear"] = lambda: F.linear(
            x, bnb.dequantize_4bit(next_theirs(), their_state))
    return calls | {"torch float32 F.linear": lambda: F.linear(x, full()),
                    "torch bfloat16 mv": lambda: torch.mv(half(), x16)}


def next_of(tensor: Tensor, set_bytes: int) -> Callable[[], Tensor]:
    """A function that hands out, in turn, copies that together fill `set_bytes`."""
    copies = cycle([tensor.clone() for _ in range(-(-set_bytes // tensor.nbytes))])
    return lambda: next(copies)


def first_use() -> dict[str, float]:
    """Seconds of a new process's first calls: with nothing compiled yet, and with the cache."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [float(subprocess.run(
            [sys.executable, "-c", FIRST_USE], env=os.environ | {"NUMBA_CACHE_DIR": folder},
            cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)]
    return dict(zip(("compiling", "cached"), seconds))


def machine(device: str) -> dict:
    """What a number without it means nothing."""
    versions = {package: importlib.metadata.version(package)
                for package in ("torch", "numba", "bitsandbytes", "triton")
                if importlib.util.find_spec(package)}
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": name, "threads": torch.get_num_threads(), "system": platform.platform(),
            "python": platform.python_version(), "load_average": load, **versions}


def cpu_name() -> str:
    """The processor's name, and the widest vectors torch sees in it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def table(results: dict) -> str:
    """Milliseconds, quartiles and the ratio to minipeft's median, a line a contender."""
    lines = [f"backend {results['backend']}, {results['machine']['processor']}, "
             f"{results['machine']['threads']} threads, {results['rounds']} rounds"]
    if bnb is None:
        lines.append("bitsandbytes is not installed: pip install bitsandbytes for its rows")
    for case in results["cases"]:
        rows, cols = case["shape"]
        lines += ["", f"{case['operation']}, {rows} x {cols}, {case['dtype']}",
                  f"  {'':36}{'median ms':>10}{'quartiles':>20}{'/ minipeft':>12}"]
        ours = case["seconds"][OURS]["median"]
        for name, seconds in case["seconds"].items():
            low, median, high = (1e3 * seconds[key] for key in ("low", "median", "high"))
            lines.append(f"  {name:36}{median:10.3f}{f'{low:.3f} - {high:.3f}':>20}"
                         f"{seconds['median'] / ours:12.2f}")
    compiling, cached = (results["first_use_seconds"][key] for key in ("compiling", "cached"))
    lines += ["", f"first use in a process: {compiling:.1f} s, {cached:.1f} s once compiled"]
    return "\n".join(lines)


def write(results: dict, out: Path, name: str) -> None:
    """The data as JSON and the float32 cases as a picture."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", results)
    save_figure(lambda: figure(results), out / f"{name}.png")


def figure(results: dict) -> Figure:
    """A row an operation, a column a shape; milliseconds, with the ratio to minipeft's beside."""
    shown = [case for case in results["cases"]
             if case["dtype"] == "float32" and "double" not in case["operation"]]
    operations, shapes = ([*dict.fromkeys(tuple(case[key]) if key == "shape" else case[key]
                                          for case in shown)] for key in ("operation", "shape"))
    picture = Figure(figsize=(3.0 + 3.8 * len(shapes), 0.6 + 1.7 * len(operations)))
    axes = picture.subplots(len(operations), len(shapes), squeeze=False)
    for case in shown:
        row, column = operations.index(case["operation"]), shapes.index(tuple(case["shape"]))
        ax, names = axes[row][column], list(case["seconds"])
        medians = [1e3 * case["seconds"][name]["median"] for name in names]
        errors = [[1e3 * abs(case["seconds"][name][edge] - case["seconds"][name]["median"])
                   for name in names] for edge in ("low", "high")]
        shades = [COLOURS[0] if name.startswith(OURS) else "#b9c7cc" for name in names]
        bars = ax.barh(names, medians, xerr=errors, color=shades, edgecolor="black", capsize=3)
        ax.bar_label(bars, [f" {m:.2f} ms = {m / medians[0]:.1f}x" for m in medians], padding=4,
                     fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.9 * max(medians))
        ax.set_title(f"{case['operation']}, {' x '.join(map(str, case['shape']))}", loc="left",
                     fontsize=9)
        ax.tick_params(labelsize=8, labelleft=column == 0)
    axes[-1][0].set_xlabel("milliseconds a call, float32: median, quartiles")
    return picture
