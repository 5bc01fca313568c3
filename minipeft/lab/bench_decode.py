"""Decoding SmolLM2 beside transformers + PEFT + bitsandbytes: tokens a second, adapters in place.

Both sides get the same weights and adapters (B = 0, which costs what any B does) and take turns, a
process each. The other side is at its fastest: evaluation and inference mode, in which bitsandbytes
packs its 4-bit layers anew for an AVX512-BF16 kernel where the processor has that. Counted is from
the first new token to the last, without the prompt.
"""
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..figures import COLOURS, save_figure
from ..files import read_tensors, write_json
from ..measure import ratio, summary
from .bench_step import (PROMPT, SIDES, make_inputs, our_base, our_lora, set_common_A, their_base,
                         their_lora, worker)
from .compare import machine

CASES = (("dense", "fp32"), ("dense", "bf16"), ("LoRA", "bf16"),
         ("4-bit", "fp32"), ("4-bit", "bf16"), ("QLoRA", "fp32"), ("QLoRA", "bf16"))
LOADS = ((1, 1), (1, 2), (8, 1), (8, 2))         # (batch, threads)
NEW_TOKENS = 24


class Clock:
    """What transformers calls a streamer: told of the prompt, then of each new token."""

    def __init__(self):
        self.seconds = []

    def put(self, tokens) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        pass


def work(folder: Path, side: str, method: str, dtype: str) -> None:
    """One side, in this process: answers each line "batch threads tokens" of stdin with a line of
    JSON: (seconds a token, the first row's new tokens)."""
    torch.set_flush_denormal(True)
    answers, sys.stdout = sys.stdout, sys.stderr      # what a library prints is no answer
    four_bit = method in ("4-bit", "QLoRA")
    model = (our_base(folder, dtype, four_bit) if side == SIDES[0] else
             their_base(folder, dtype, four_bit, packs=True))
    if "LoRA" in method:
        model = (our_lora if side == SIDES[0] else their_lora)(model)
        set_common_A(model, folder)
    ids = read_tensors(folder / "batches.safetensors")[0]["ids 0"][:, :PROMPT]
    decode = our_decode if side == SIDES[0] else their_decode
    for line in sys.stdin:
        batch, threads, n_tokens = map(int, line.split())
        torch.set_num_threads(threads)
        moments, tokens = decode(model.eval(), ids[:batch], n_tokens)
        answers.write(json.dumps(((moments[-1] - moments[0]) / (n_tokens - 1), tokens)) + "\n")
        answers.flush()


@torch.inference_mode()
def our_decode(model, ids: torch.Tensor, n_tokens: int) -> tuple[list[float], list[int]]:
    moments, tokens = [], []
    for new in model.stream(ids, n_tokens):
        moments.append(time.perf_counter())
        tokens.append(new[0, 0].item())
    return moments, tokens


@torch.inference_mode()
def their_decode(model, ids: torch.Tensor, n_tokens: int) -> tuple[list[float], list[int]]:
    clock = Clock()
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0,
                         do_sample=False, max_new_tokens=n_tokens, streamer=clock)
    return clock.seconds[1:], out[0, ids.shape[1]:].tolist()


def run(out: Path, quick: bool = False, progress=lambda cases, **_: cases) -> dict:
    """Measure, write decode.json and decode.png into the folder `out`, return the data."""
    cases, loads, rounds, n_tokens = ((CASES[-1:], LOADS[:1], 2, 6) if quick else
                                      (CASES, LOADS, 5, NEW_TOKENS))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), 1)
        for method, dtype in progress(cases, desc="models"):
            found += measure(folder, method, dtype, loads, rounds, n_tokens)
    results = dict(machine=machine(), rounds=rounds, prompt=PROMPT, new_tokens=n_tokens,
                   cases=found)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "decode.json", results)
    save_figure(lambda: figure(results), out / "decode.png")
    return results


def measure(folder: str, method: str, dtype: str, loads: Iterable[tuple[int, int]], rounds: int,
            n_tokens: int) -> list[dict]:
    """One model: a fresh process a side, which take turns; a round warms up. A dict a batch and
    number of threads."""
    found = []
    with contextlib.ExitStack() as stack:
        asks = {side: stack.enter_context(worker(__name__, folder, side, method, dtype))
                for side in SIDES}
        for batch, threads in loads:
            answers = {side: [] for side in SIDES}
            for number in range(1 + rounds):
                for side in SIDES if number % 2 else SIDES[::-1]:
                    answers[side].append(asks[side](f"{batch} {threads} {n_tokens}"))
            seconds = {side: [taken for taken, _ in turns[1:]] for side, turns in answers.items()}
            rates = {side: summary([batch / s for s in taken]) for side, taken in seconds.items()}
            ours, theirs = (seconds[side] for side in SIDES)
            found.append(dict(
                method=method, dtype=dtype, batch=batch, threads=threads,
                tokens={side: turns[0][1] for side, turns in answers.items()},
                tokens_per_second={side: rate.as_dict() for side, rate in rates.items()},
                time_ratio=ratio(ours, theirs).as_dict()))
    return found


def table(results: dict) -> str:
    """A line a case: tokens a second of all rows together, ours and theirs, and the ratio of the
    times with quartiles."""
    lines = [f"SmolLM2-135M, greedy, {results['new_tokens']} tokens after {results['prompt']}, "
             f"tokens/s of all rows, medians; the other side is",
             "transformers, with PEFT and bitsandbytes in eval and inference mode; LoRA and QLoRA: "
             "r = 8 on all linears",
             f"{'':<12}{'batch':>6}{'threads':>8}{'minipeft':>10}{'HF':>8}  time, of HF's "
             f"(quartiles)"]
    for case in results["cases"]:
        ours, theirs = (case["tokens_per_second"][side]["median"] for side in SIDES)
        of = case["time_ratio"]
        lines.append(f"{case['method']:<7}{case['dtype']:<5}{case['batch']:>6}{case['threads']:>8}"
                     f"{ours:>10.1f}{theirs:>8.1f}  {of['median']:.2f} ({of['low']:.2f} to "
                     f"{of['high']:.2f})")
    return "\n".join(lines)


def figure(results: dict) -> Figure:
    """A panel a batch and number of threads: tokens a second by model, bars from quartile to
    quartile."""
    panels = sorted({(case["batch"], case["threads"]) for case in results["cases"]})
    picture = Figure(figsize=(9.0, 6.4))
    axes = picture.subplots(2, -(-len(panels) // 2), squeeze=False)
    for ax, (batch, threads) in zip(axes.flat, panels):
        cases = [case for case in results["cases"]
                 if (case["batch"], case["threads"]) == (batch, threads)]
        for k, side in enumerate(SIDES):
            rates = [case["tokens_per_second"][side] for case in cases]
            middle = [rate["median"] for rate in rates]
            ax.barh([i + 0.4 * k for i in range(len(cases))], middle, height=0.4,
                    xerr=[[abs(rate[edge] - rate["median"]) for rate in rates]
                          for edge in ("low", "high")],
                    color=(COLOURS[0], "#b9c7cc")[k], edgecolor="black", capsize=2,
                    label=(SIDES[0], "transformers + PEFT + bitsandbytes")[k])
        ax.set_yticks([i + 0.2 for i in range(len(cases))],
                      [f"{case['method']} {case['dtype']}" for case in cases], fontsize=8)
        ax.invert_yaxis()
        ax.set_title(f"batch {batch}, {threads} thread{'s' * (threads > 1)}", loc="left",
                     fontsize=9)
    axes[-1][0].set_xlabel("tokens/s of all rows: median, quartiles")
    picture.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower right", fontsize=8)
    return picture


if __name__ == "__main__":
    folder, *job = json.loads(sys.argv[1])
    work(Path(folder), *job)
