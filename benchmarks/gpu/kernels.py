"""NF4's kernels beside bitsandbytes and a plain copy, and what they do to decoding.

The contenders are those of `python -m minipeft bench nf4`; on a GPU also bitsandbytes' fused 4-bit
product. A GB here is 1e9 bytes; a quantized weight moves its own bytes and its code's once.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minipeft import GPTConfig, figures
from minipeft.lab import bench_nf4
from minipeft.lab.summary import layout
from minipeft.nf4 import backend_for

from .latency import TINY
from .shapes import in_turn, milliseconds, random_gpt

try:
    from bitsandbytes import matmul_4bit
except ImportError:         # an optional peer: its rows are then missing
    matmul_4bit = None

BLOCKSIZE = 64


@dataclass(frozen=True)
class Kernels:
    rows: int               # of the weight
    columns: int
    set_bytes: int          # that gemv's matrices fill together: more than the caches hold
    repeats: int            # calls a timing
    rounds: int = 15


@dataclass(frozen=True)
class Decode:
    config: GPTConfig
    weights: str            # one of WEIGHTS
    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 32        # tokens read, in the time as well
    new: int = 64           # tokens made a row
    rounds: int = 5


LLAMA = GPTConfig.preset("llama-3-8b")
CASES = {f"{rows} x {columns}": Kernels(rows, columns, 2**29, 20)
         for rows, columns in ((4096, 4096), (22016, 8192))}
WEIGHTS = ("bf16", "NF4", "NF4 + DQ")
CASES |= {f"llama-3-8b {weights}": Decode(LLAMA, weights) for weights in WEIGHTS}
SMOKE = {"64 x 128": Kernels(64, 128, 2**14, 1, 2),
         **{f"tiny {weights}": Decode(TINY, weights, (1, 2), 4, 3, 2) for weights in WEIGHTS}}


def measure(case: Kernels | Decode, where: torch.device, folder: Path) -> dict:
    torch.manual_seed(0)
    return (measure_kernels if isinstance(case, Kernels) else measure_decoding)(case, where)


def measure_kernels(case: Kernels, where: torch.device) -> dict:
    """Seconds of a call, by operation and contender."""
    found, shape = [], (case.rows, case.columns)
    for part in bench_nf4.cases(shape, where.type, case.set_bytes):
        operation, dtype = part.name, part.dtype
        builds = bench_nf4.OPERATIONS[part.operation](part)
        calls = {name: build() for name, build in builds.items()}
        if operation == "gemv" and where.type == "cuda" and matmul_4bit:
            calls |= fused_products(torch.randn(shape, device=where), case.set_bytes)
        found.append({"operation": operation, "dtype": str(dtype)[6:],
                      "bytes": bytes_moved(operation, dtype, case.rows * case.columns),
                      "seconds": in_turn(calls, case.rounds, where, case.repeats)})
    return {"backend": backend_for(where), "operations": found}


def fused_products(weight: torch.Tensor, set_bytes: int) -> dict:
    """y = W x by bitsandbytes, straight from the codes, in the dtypes of the other contenders."""
    x = torch.randn(1, weight.shape[1], device=weight.device)
    codes, state = bench_nf4.bnb.quantize_4bit(weight, blocksize=BLOCKSIZE, quant_type="nf4")
    following = bench_nf4.next_of(codes, set_bytes)

    def fused(x: torch.Tensor):
        return lambda: matmul_4bit(x, following().t(), quant_state=state)

    return {f"{bench_nf4.PEER}, fused {dtype}": fused(x.to(getattr(torch, dtype)))
            for dtype in ("float32", "bfloat16")}


def bytes_moved(operation: str, dtype: torch.dtype, n: int) -> dict[str, float]:
    """What ours and a copy of the weight have to read and write."""
    constants = (1 if "double" in operation else 4) / BLOCKSIZE
    weight = 0 if operation == "gemv" else dtype.itemsize
    return {"minipeft": n * (0.5 + constants + weight), "copy": 2 * n * dtype.itemsize}


def measure_decoding(case: Decode, where: torch.device) -> dict:
    """Seconds of `generate`, greedy, by batch."""
    model = random_gpt(case.config, torch.bfloat16, where, case.weights != "bf16",
                       case.weights.endswith("DQ")).eval()
    prompts = {f"batch {rows}": torch.randint(case.config.vocab_size, (rows, case.prompt),
                                              device=where) for rows in case.batches}
    timings = in_turn({name: lambda ids=ids: model.generate(ids, case.new)
                       for name, ids in prompts.items()}, case.rounds, where, warmup=1)
    return {"decoding": timings, "weights_bytes": sum(
        t.nbytes for t in {*model.parameters(), *model.buffers()})}


def tokens_per_second(found: dict, batch: int) -> float:
    """New tokens of all rows; the prompt's pass is in the time."""
    return batch * found["settings"]["new"] / found["decoding"][f"batch {batch}"]["median"]


def table(results: dict) -> str:
    """Two tables: the kernels, then tokens per second."""
    return "\n\n".join([kernel_table(results), decoding_table(results)])


def kernel_table(results: dict) -> str:
    rows = []
    for name, found in results["cases"].items():
        for part in found.get("operations", []):
            ours = part["seconds"][bench_nf4.OURS]["median"]
            copy = part["seconds"].get("copy")
            for contender, timing in part["seconds"].items():
                rate = (f"{part['bytes'][contender] / timing['median'] / 1e9:,.0f}"
                        if contender in part["bytes"] else "-")
                share = (part["bytes"]["minipeft"] / part["bytes"]["copy"] * copy["median"] / ours
                         if copy and contender == bench_nf4.OURS else None)
                rows.append([name, part["operation"], part["dtype"], contender,
                             *milliseconds(timing), f"{timing['median'] / ours:.2f}", rate,
                             "-" if share is None else f"{share:.0%}"])
    return layout(["weight", "operation", "dtype", "contender", "median ms", "quartiles",
                   "/ minipeft", "GB/s", "of copy's"], rows)


def decoding_table(results: dict) -> str:
    rows = [[name, f"{found['weights_bytes'] / 1e9:.2f}", batch[6:],
             f"{tokens_per_second(found, int(batch[6:])):,.1f}", *milliseconds(timing)]
            for name, found in results["cases"].items()
            for batch, timing in found.get("decoding", {}).items()]
    return layout(["decoding", "weights GB", "batch", "tokens/s", "median ms", "quartiles"], rows)


def figure(results: dict) -> Figure:
    """Tokens per second by batch, a line a storage of the weights."""
    fig, (ax,) = figures.new_figure()
    for (name, found), look in zip(results["cases"].items(), [{}, *figures.LOOKS.values()]):
        if "decoding" in found:
            batches = found["settings"]["batches"]
            rates = [tokens_per_second(found, rows) for rows in batches]
            ax.plot(batches, rates, label=name, **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("rows decoded at once")
    ax.set_ylabel("new tokens a second, all rows")
    ax.set_title("Decoding" + (" SMOKE, not evidence" if results["smoke"] else ""))
    ax.legend()
    return fig
