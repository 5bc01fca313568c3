"""How fast NF4 is here, beside bitsandbytes (where installed), torch and a plain copy.

Contenders of one case take turns (turns.py). A new output costs its page faults (4 bytes a weight),
so dequantizing is timed both with one and into a given buffer. gemv takes each matrix from a set
too large for caches; the peer multiplies in two ways, and the faster one rounds to bfloat16. Then
come whole layers (bench_layer.py).
"""
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ..figures import COLOURS, save_figure
from ..files import CHECKOUT, write_json
from ..measure import summary
from ..nf4 import backend_for, dequantize_nf4, gemv, quantize_nf4
from . import bench_layer
from .turns import OURS, PEER, Build, in_turn, sides

try:
    import bitsandbytes.functional as bnb
except ImportError:         # an optional peer: the table then lacks its rows, and says so
    bnb = None

SHAPES = ((4096, 4096), (576, 1536))        # a 7B model's attention, SmolLM2's MLP
QUICK_SHAPES = ((512, 512),)
SET_BYTES = 2**29                           # that gemv's matrices fill together, of each contender
QUICK_SET_BYTES = 2**22
FIRST_USE = """
import time, torch
weight, x = torch.randn(256, 256), torch.randn(256)
start = time.perf_counter()
from minipeft.nf4 import quantize_nf4, dequantize_nf4, gemv
packed, state = quantize_nf4(weight)
dequantize_nf4(packed, state), gemv(packed, state, x)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Case:
    operation: str                 # a key of OPERATIONS
    shape: tuple[int, int]
    dtype: torch.dtype
    nested: bool                   # double quantization
    device: str
    set_bytes: int
    threads: int

    @property
    def name(self) -> str:
        return self.operation + " + double quantization" * self.nested

    def weight(self) -> Tensor:
        torch.manual_seed(0)
        return torch.randn(self.shape, device=self.device).to(self.dtype)

    def builds(self) -> dict[str, Build]:
        return OPERATIONS[self.operation](self)


def run(out: Path, quick: bool = False, progress=lambda asked, **_: asked) -> dict:
    """Measure, write nf4_cpu.json, .png and _layers.png (or nf4_cuda) into the folder `out`, return
    the data."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, rounds = (QUICK_SHAPES, 3) if quick else (SHAPES, 15)
    set_bytes = QUICK_SET_BYTES if quick else SET_BYTES
    results = {"machine": machine(device), "backend": backend_for(device), "rounds": rounds,
               "cases": []}
    asked = [case for shape in shapes for case in cases(shape, device, set_bytes)]
    with sides() as pipes:
        for case in progress(asked, desc="kernels"):
            seconds = in_turn(case, rounds, pipes)
            results["cases"].append({
                "operation": case.name, "shape": list(case.shape), "dtype": str(case.dtype)[6:],
                "seconds": {name: summary(values).as_dict() for name, values in seconds.items()}})
        results["layers"] = bench_layer.run(device, quick, pipes, progress)
    results["first_use_seconds"] = first_use()
    write(results, out, f"nf4_{device}")
    return results


def cases(shape: tuple[int, int], device: str, set_bytes: int) -> Iterator[Case]:
    where = device, set_bytes, torch.get_num_threads()
    for dtype, nested in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        for operation in ("quantize", "dequantize"):
            yield Case(operation, shape, dtype, nested, *where)
    yield Case("gemv", shape, torch.float32, False, *where)


def quantizers(case: Case) -> dict[str, Build]:
    """weight -> codes; the copy shows what moving the bytes alone takes."""
    def ours() -> Callable:
        weight = case.weight()
        return lambda: quantize_nf4(weight, compress_statistics=case.nested)

    def theirs() -> Callable:
        weight = case.weight()
        return lambda: bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4",
                                         compress_statistics=case.nested)
    return {OURS: ours} | ({PEER: theirs} if bnb else {}) | {"copy": partial(copy, case)}


def copy(case: Case) -> Callable:
    weight = case.weight()
    buffer = torch.empty_like(weight)
    return lambda: buffer.copy_(weight)


def dequantizers(case: Case) -> dict[str, Build]:
    """codes -> weight, into a buffer and into new memory."""
    def ours(buffer: bool) -> Callable:
        weight = case.weight()
        packed, state = quantize_nf4(weight, compress_statistics=case.nested)
        out = torch.empty_like(weight) if buffer else None
        return lambda: dequantize_nf4(packed, state, out=out)

    def theirs() -> Callable:
        packed, state = bnb.quantize_4bit(case.weight(), blocksize=64, quant_type="nf4",
                                          compress_statistics=case.nested)
        return lambda: bnb.dequantize_4bit(packed, state)
    return ({OURS: partial(ours, True), f"{OURS}, new output": partial(ours, False)}
            | ({f"{PEER}, new output": theirs} if bnb else {}) | {"copy": partial(copy, case)})


def multipliers(case: Case) -> dict[str, Build]:
    """y = W x at batch 1: from codes, by dequantizing first, and with 32- and 16-bit weights."""
    def ours() -> Callable:
        packed, state = quantize_nf4(case.weight())
        codes, x = next_of(packed, case.set_bytes), vector(case)
        return lambda: gemv(codes(), state, x)

    def full() -> Callable:
        weights, x = next_of(case.weight(), case.set_bytes), vector(case)
        return lambda: F.linear(x, weights())

    def half() -> Callable:
        weights, x = next_of(case.weight().bfloat16(), case.set_bytes), vector(case).bfloat16()
        return lambda: torch.mv(weights(), x)
    peers = {f"{PEER}, dequantize + F.linear": partial(peer_default, case),
             f"{PEER}, Linear4bit in eval mode": partial(peer_fastest, case)} if bnb else {}
    return {OURS: ours, **peers, "torch float32 F.linear": full, "torch bfloat16 mv": half}


def vector(case: Case) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(case.shape[1], device=case.device)


def peer_default(case: Case) -> Callable:
    packed, state = bnb.quantize_4bit(case.weight(), blocksize=64, quant_type="nf4")
    codes, x = next_of(packed, case.set_bytes), vector(case)
    return lambda: F.linear(x, bnb.dequantize_4bit(codes(), state))


def peer_fastest(case: Case) -> Callable:
    """On a CPU with AVX512-BF16 the layer packs its codes anew and runs a fused kernel."""
    layer, x = bench_layer.peer_layer(case.weight(), None, False).eval(), vector(case)[None]
    copies = [deepcopy(layer) for _ in range(-(-case.set_bytes // layer.weight.nbytes))]
    with torch.inference_mode():
        for each in copies:                      # the first call packs
            each(x)
    layers = cycle(copies)
    return torch.inference_mode()(lambda: next(layers)(x))


OPERATIONS = {"quantize": quantizers, "dequantize": dequantizers, "gemv": multipliers}


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
    return "\n".join(lines) + "\n\n" + bench_layer.table(results["layers"])


def write(results: dict, out: Path, name: str) -> None:
    """The data as JSON, the float32 kernels and the layers as a picture each."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", results)
    save_figure(lambda: figure(results), out / f"{name}.png")
    save_figure(lambda: bench_layer.figure(results["layers"]), out / f"{name}_layers.png")


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
