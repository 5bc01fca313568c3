"""`minipeft memory`: what will a fine-tuning run take, and does it fit?"""
import math
from pathlib import Path

from ..adapter import nearest
from ..files import read_json
from ..gpt import PRESETS, GPTConfig
from ..lab import memory, plot
from ..recipes import RECIPES
from . import UsageError, check_output

EXAMPLE = "python -m minipeft memory --model llama-2-7b --method qlora --r 16 --gpu 16"


def arguments(parser) -> None:
    parser.add_argument("--model", required=True,
                        help=f"{', '.join(PRESETS)}, or the path of a config.json in HuggingFace's "
                             "Llama format")
    parser.add_argument("--method", default="qlora", help=", ".join(RECIPES))
    parser.add_argument("--r", type=int, help="rank; for prompt and prefix virtual tokens, for "
                        "houlsby bottleneck (default: as finetune takes it)")
    parser.add_argument("--batch", type=int, default=1, help="sequences a step")
    parser.add_argument("--seq", type=int, default=512, help="tokens a sequence")
    parser.add_argument("--checkpointing", action="store_true",
                        help="gradient checkpointing: keep the layers' inputs, recompute the rest")
    parser.add_argument("--optimizer", default="adamw", help=", ".join(memory.OPTIMIZERS))
    parser.add_argument("--dtype", default="bf16", help=f"of the base: {', '.join(memory.DTYPES)}")
    parser.add_argument("--gpu", type=float, metavar="GIB",
                        help="memory of the card in GiB (2^30 bytes): a 24 GB card has 24 GiB")
    parser.add_argument("--out", type=Path, help="folder for memory.png")


def run(args) -> None:
    if args.gpu is not None and not 0 < args.gpu < math.inf:
        raise UsageError(f"--gpu must be a positive number of GiB, got {args.gpu}")
    try:
        usual = RECIPES[args.method].llm_size if args.method in RECIPES else None
        usual = 1 if usual is None else usual             # full fine-tuning has no size
        r = usual if args.r is None else args.r
        planned = memory.Run(read_config(args.model), args.method, r, args.batch, args.seq,
                             args.dtype, args.optimizer, args.checkpointing)
        parts = memory.plan(planned)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if args.out:
        check_output(args.out)
    print(table(parts))
    if args.gpu is not None:
        print(verdict(planned, sum(parts.values()), args.gpu))
    if args.out:
        print("written:", plot.memory_plan_picture(parts, args.gpu, args.out))


def read_config(model: str) -> GPTConfig:
    """A preset's sizes, or those of a config.json; ValueError names what is missing."""
    if model in PRESETS:
        return GPTConfig.preset(model)
    path = Path(model)
    if path.suffix != ".json":
        raise ValueError(f"unknown model {model!r}{nearest(model, PRESETS)}; known: "
                         f"{', '.join(PRESETS)}, or the path of a config.json")
    if not path.is_file():
        raise ValueError(f"no file {path}")
    entries = read_json(path)
    fields = GPTConfig.__dataclass_fields__
    missing = [name for name in list(fields)[:5] if name not in entries]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; a Llama config.json has "
                         f"{', '.join(list(fields)[:5])}")
    return GPTConfig(**{name: entries[name] for name in fields if name in entries})


def table(parts: dict[str, int]) -> str:
    total = sum(parts.values())
    lines = [f"{'':<24}{'bytes':>20}{'GB':>10}{'GiB':>10}"]
    for kind, size in [*parts.items(), ("together", total)]:
        lines.append(f"{kind:<24}{size:>20,}{size / 1e9:>10.3f}{size / memory.GiB:>10.3f}")
    return "\n".join(lines)


def verdict(planned: memory.Run, total: int, gpu: float) -> str:
    """Whether it fits, what is left, and if it does not, what to change."""
    limit = int((gpu - 1) * memory.GiB)        # the CUDA context and fragmentation take about 1 GiB
    left = gpu - total / memory.GiB
    if total <= limit:
        return f"\nfits into {gpu:g} GiB: {left:.2f} GiB are left, of which CUDA takes about 1"
    if left >= 0:
        return (f"\nmarginal in {gpu:g} GiB: {left:.2f} GiB are left, and CUDA takes about 1"
                + options(planned, limit))
    return f"\ndoes not fit into {gpu:g} GiB: {-left:.2f} GiB too many" + options(planned, limit)


def options(planned: memory.Run, limit: int) -> str:
    lines = memory.advice(planned, limit)
    return "\nwhat to change (1 GiB set aside):\n  " + "\n  ".join(lines) if lines else ""
