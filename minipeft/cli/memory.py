"""`minipeft memory`: what will a fine-tuning run take, and does it fit?"""
import math
from dataclasses import replace
from pathlib import Path

from ..adapter import nearest
from ..gpt import PRESETS, GPTConfig
from ..lab import memory, plot
from ..llm import base, hf_config
from ..recipes import RECIPES
from . import UsageError, check_output

EXAMPLE = "python -m minipeft memory --model llama-2-7b --method qlora --r 16 --gpu 16"
SEQ = 512


def arguments(parser) -> None:
    parser.add_argument("--model", required=True,
                        help=f"{', '.join(PRESETS)}, or a config.json of HuggingFace, the folder "
                             "that holds it, or a .gguf file")
    parser.add_argument("--method", default="qlora", help=", ".join(RECIPES))
    parser.add_argument("--r", type=int, help="rank; for prompt and prefix virtual tokens, for "
                        "houlsby bottleneck; finetune's --size, and by default what it takes")
    parser.add_argument("--batch", type=int, default=1, help="sequences a step")
    parser.add_argument("--seq", type=int, help=f"tokens a sequence (default: {SEQ}, or as many "
                        "as the model has positions for)")
    parser.add_argument("--checkpointing", action="store_true",
                        help="gradient checkpointing, finetune's --recompute: keep the layers' "
                             "inputs, recompute the rest")
    parser.add_argument("--optimizer", default="adamw", help=", ".join(memory.OPTIMIZERS))
    parser.add_argument("--dtype", default="bf16", help=f"of the base: {', '.join(memory.DTYPES)}")
    parser.add_argument("--gpu", type=float, metavar="GIB",
                        help="memory of the card in GiB (2^30 bytes): a 24 GB card has 24 GiB")
    parser.add_argument("--out", type=Path, help="folder for memory.png")


def run(args) -> None:
    if args.gpu is not None and not 0 < args.gpu < math.inf:
        raise UsageError(f"--gpu must be a positive number of GiB, got {args.gpu}")
    try:
        model = read_model(args.model)
        planned = planned_run(args, model.config)
        if model.window is not None and planned.positions > model.window:
            raise ValueError(f"{args.model}: its sliding_window ends after {model.window} tokens, "
                             f"and a sequence has {planned.positions}; GPT has no window: plan for "
                             f"at most as many")
        parts = memory.plan(planned)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if args.out:
        check_output(args.out)
    print(table(parts))
    if model.note:
        print(f"\n{model.note}")
    if args.gpu is not None:
        print(verdict(planned, sum(parts.values()), args.gpu))
    if args.out:
        print("written:", plot.memory_plan_picture(parts, args.gpu, args.out))


def planned_run(args, config: GPTConfig) -> memory.Run:
    """The run as the arguments describe it, with what they leave open."""
    usual = RECIPES[args.method].llm_size if args.method in RECIPES else None
    if args.method == "full" and args.r is not None:
        raise ValueError(f"full fine-tuning has no r, got --r {args.r}; leave it out")
    size = args.r if args.r is not None else 1 if usual is None else usual
    run = memory.Run(config, args.method, size, args.batch, 1 if args.seq is None else args.seq,
                     args.dtype, args.optimizer, args.checkpointing)
    if args.seq is not None:
        return run
    return replace(run, seq=min(SEQ, 1 + config.max_position_embeddings - run.positions))


def read_model(model: str) -> hf_config.Model:
    """A preset, or what a config.json says; ValueError lists what is known, or names the file."""
    if model in PRESETS:
        return hf_config.Model(GPTConfig.preset(model))
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if path.suffix == ".gguf" and path.is_file():
        return hf_config.Model(base.read_config(path))
    if path.suffix != ".json":
        raise ValueError(f"unknown model {model!r}{nearest(model, PRESETS)}; known: "
                         f"{', '.join(PRESETS)}; or a model's folder, its config.json or a .gguf "
                         f"file that is there")
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return hf_config.read(path)


def table(parts: dict[str, int]) -> str:
    total = sum(parts.values())
    lines = [f"{'':<24}{'bytes':>20}{'GB':>10}{'GiB':>10}"]
    for kind, size in [*parts.items(), ("together", total)]:
        lines.append(f"{kind:<24}{size:>20,}{size / 1e9:>10.3f}{size / memory.GiB:>10.3f}")
    return "\n".join(lines)


def verdict(planned: memory.Run, total: int, gpu: float) -> str:
    """Whether it fits, what is left, and if it does not, what to change."""
    limit = (gpu - 1) * memory.GiB             # the CUDA context and fragmentation take about 1 GiB
    left = gpu - total / memory.GiB
    if total <= limit:
        return f"\nfits into {gpu:g} GiB: {left:.2f} GiB are left, of which CUDA takes about 1"
    if left >= 0:
        return (f"\nmarginal in {gpu:g} GiB: {left:.2f} GiB are left, and CUDA takes about 1"
                + options(planned, limit))
    return f"\ndoes not fit into {gpu:g} GiB: {-left:.2f} GiB too many" + options(planned, limit)


def options(planned: memory.Run, limit: float) -> str:
    lines = memory.advice(planned, limit)
    return "\nwhat to change (1 GiB set aside):\n  " + "\n  ".join(lines) if lines else ""
