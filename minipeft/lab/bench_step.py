"""A training step of ours beside HuggingFace PEFT's: seconds, peak memory, losses; and decoding.

Both sides get the same SmolLM2 weights, the same batches (rows of similar length, as `finetune`
makes them), the same A, B = 0 and AdamW with the same settings. Each side of a case is a fresh
process, so that its memory is its own, and the two take turns step by step, so that a drift of the
machine hits both. The other side is the *default* recipe of transformers + PEFT (+ bitsandbytes):
its users could tune it as well. Ours is what `finetune` does: what the rows begin with is computed
once (shared_prefix.py), the head on labelled positions only, LoRA in the base's dtype and added in
one addmm, attention in float32 where a CPU's bfloat16 is slow.
"""
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..files import DATA, read_tensors, write_json
from ..gpt import GPT, GPTConfig
from ..llm.chat import batch_plan, collate, encode_example, read_jsonl
from ..llm.shared_prefix import shared_logits
from ..lora import LoraConfig
from ..nf4 import quantize_model
from ..peft_model import get_peft_model
from .compare import machine

TEXTS = DATA / "tool_calls" / "train.jsonl"
ROWS, RANK, LR = 8, 8, 1e-3
PROMPT, NEW_TOKENS = 32, 40              # of one greedy answer, batch 1
SIDES = ("minipeft", "HF PEFT")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_inputs(folder: Path, steps: int) -> None:
    """Weights, batches and the common A, in files: neither side pays for reading the GGUF."""
    from ..llm.smollm2 import load
    model, tokenizer = load()
    rows = [encode_example(messages, lambda text: tokenizer.encode(text).ids)
            for messages in read_jsonl(TEXTS)]
    batches, plan = {}, batch_plan([len(ids) for ids, _ in rows], ROWS, seed=0)
    for step in range(steps):
        ids, labels = collate([rows[i] for i in next(plan)])
        batches |= {f"ids {step}": ids, f"labels {step}": labels}
    save_file(batches, folder / "batches.safetensors")
    generator = torch.Generator().manual_seed(0)
    A = {f"{path}.lora_A": torch.randn(RANK, module.in_features, generator=generator) / 24
         for path, module in model.named_modules()
         if isinstance(module, torch.nn.Linear) and path != "lm_head"}
    save_file(A, folder / "A.safetensors")
    weights = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    for name, dtype in DTYPES.items():
        save_file({key: t.to(dtype) for key, t in weights.items()}, folder / f"{name}.safetensors")


def weights_of(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    state = read_tensors(folder / f"{dtype}.safetensors")[0]
    return state | {"lm_head.weight": state["model.embed_tokens.weight"]}


def our_base(folder: Path, dtype: str, four_bit: bool) -> torch.nn.Module:
    with torch.device("meta"):
        model = GPT(GPTConfig.preset("smollm2-135m"))
    model.load_state_dict(weights_of(folder, dtype), assign=True)
    model.tie_weights()
    return quantize_model(model) if four_bit else model


def our_lora(model: torch.nn.Module) -> torch.nn.Module:
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"))


def ours(folder: Path, dtype: str, four_bit: bool) -> tuple[torch.nn.Module, Callable]:
    peft_model = our_lora(our_base(folder, dtype, four_bit))

    def loss(ids, labels):
        logits, targets = shared_logits(peft_model, (ids, labels))
        return F.cross_entropy(logits.float(), targets)
    return peft_model.train(), loss


def their_base(folder: Path, dtype: str, four_bit: bool, packs: bool) -> torch.nn.Module:
    """`packs`: whether bitsandbytes' layers may, for inference, pack their weights anew."""
    import transformers
    sizes = {**vars(GPTConfig.preset("smollm2-135m"))}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model.load_state_dict(weights_of(folder, dtype), assign=True)
    model.tie_weights()
    rotary = model.model.rotary_emb       # its table is no weight: made again off the meta device
    model.model.rotary_emb = type(rotary)(config=model.config)
    model.generation_config.eos_token_id = None   # so that decode takes every step
    if four_bit:
        quantize_with_bitsandbytes(model, packs)
    return model


def their_lora(model: torch.nn.Module) -> torch.nn.Module:
    import peft
    names = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    return peft.get_peft_model(model, peft.LoraConfig(
        r=RANK, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))


def theirs(folder: Path, dtype: str, four_bit: bool) -> tuple[torch.nn.Module, Callable]:
    peft_model = their_lora(their_base(folder, dtype, four_bit, packs=False))

    def loss(ids, labels):
        return peft_model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    return peft_model.train(), loss


def quantize_with_bitsandbytes(model: torch.nn.Module, packs: bool) -> None:
    import bitsandbytes as bnb
    for path, linear in list(model.named_modules()):
        if type(linear) is torch.nn.Linear and path != "lm_head":
            layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False,
                                      compute_dtype=linear.weight.dtype, quant_type="nf4")
            layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False,
                                             quant_type="nf4", compress_statistics=True)
            layer.support_avx512bf16_for_cpu &= packs
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.to("cpu"))


def set_common_A(model: torch.nn.Module, folder: Path) -> None:
    A = read_tensors(folder / "A.safetensors")[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                path = name[name.index("model.layers"):].split(".lora_A")[0]
                parameter.copy_(A[f"{path}.lora_A"])


def work(folder: Path, side: str, dtype: str, four_bit: bool) -> None:
    """One side, in this process: answers each line of stdin with a line of JSON (see `worker`)."""
    torch.set_flush_denormal(True)
    answers, sys.stdout = sys.stdout, sys.stderr      # what a library prints is no answer
    model, loss_of = (ours if side == SIDES[0] else theirs)(folder, dtype, four_bit)
    set_common_A(model, folder)
    batches = read_tensors(folder / "batches.safetensors")[0]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR,
                                  weight_decay=0.0)

    def step(number: str) -> tuple[float, float]:     # (seconds, loss)
        start = time.perf_counter()
        loss = loss_of(batches[f"ids {number}"], batches[f"labels {number}"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, loss.item()

    for line in sys.stdin:
        job, *which = line.split()
        answer = (step(*which) if job == "step" else peak_bytes() if job == "peak" else
                  decode(model.eval(), batches["ids 0"][:1, :PROMPT], side))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


@torch.no_grad()
def decode(model: torch.nn.Module, ids: torch.Tensor, side: str) -> tuple[float, list[int]]:
    """(tokens a second, the likeliest next tokens), adapter not merged."""
    start = time.perf_counter()
    if side == SIDES[0]:
        out = model.generate(ids, NEW_TOKENS)
    else:
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0,
                             do_sample=False, max_new_tokens=NEW_TOKENS)
    return NEW_TOKENS / (time.perf_counter() - start), out[0, PROMPT:].tolist()


def peak_bytes() -> int | None:
    """The largest resident set of this process so far; None where the system does not tell."""
    if platform.system() == "Windows":
        return None
    import resource
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(out: Path, quick: bool = False, progress=lambda turns, **_: turns) -> dict:
    """Measure both sides in turn and write `out`/step.json; returns what it holds."""
    steps = 4 if quick else 10
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), steps)
        for dtype in ["fp32"] if quick else DTYPES:
            for four_bit in (False, True):
                turns = progress(range(steps), desc=f"{'QLoRA' if four_bit else 'LoRA'} {dtype}")
                runs += measure(folder, dtype, four_bit, turns)
    results = dict(machine=machine(), threads=torch.get_num_threads(), steps=steps, rows=ROWS,
                   rank=RANK, runs=runs)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "step.json", results)
    return results


def measure(folder: str, dtype: str, four_bit: bool, turns) -> list[dict]:
    """One case: a fresh process a side, which take turns; a dict a side."""
    with contextlib.ExitStack() as stack:
        asks = [stack.enter_context(worker(__name__, folder, side, dtype, four_bit))
                for side in SIDES]
        steps = [[ask(f"step {turn}") for ask in asks] for turn in turns]
        peaks = [ask("peak") for ask in asks]
        decoded = [[ask("decode") for ask in asks] for _ in range(3)]
    return [dict(side=side, dtype=dtype, four_bit=four_bit,
                 seconds=[turn[i][0] for turn in steps], losses=[turn[i][1] for turn in steps],
                 peak_bytes=peaks[i], decoded=decoded[0][i][1],
                 decode_tokens_per_second=[turn[i][0] for turn in decoded])
            for i, side in enumerate(SIDES)]


@contextlib.contextmanager
def worker(module: str, *job) -> Iterator[Callable]:
    """A function that asks a fresh process, which runs the module, for "step 0", "peak" or "decode"
    and waits for the answer; OSError with what it wrote to stderr if it ended instead."""
    command = [sys.executable, "-m", module, json.dumps(job)]
    with (tempfile.TemporaryFile("w+") as errors,
          subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                           text=True) as process):
        def ask(question: str):
            with contextlib.suppress(OSError):            # a pipe to a process that has ended
                process.stdin.write(question + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                raise OSError(f"the process for {job[1:]} failed: {errors.read().strip()[-600:]}")
            return json.loads(answer)
        yield ask


def ratios(results: dict) -> list[dict]:
    """One row a case: both sides, the ratios of time (median and quartiles over the turns, without
    the first, which warms up) and memory, how far apart the losses are."""
    rows = []
    for ours, theirs in zip(results["runs"][::2], results["runs"][1::2]):
        sides = (ours, theirs)
        turns = [a / b for a, b in zip(ours["seconds"][1:], theirs["seconds"][1:])]
        low, middle, high = statistics.quantiles(turns, n=4, method="inclusive")
        peaks = [run["peak_bytes"] for run in sides]
        rows.append(dict(
            method="QLoRA" if ours["four_bit"] else "LoRA", dtype=ours["dtype"],
            seconds=[statistics.median(run["seconds"][1:]) for run in sides],
            time_ratio=middle, time_ratio_low=low, time_ratio_high=high, peaks=peaks,
            memory_ratio=None if None in peaks else peaks[0] / peaks[1],
            largest_loss_difference=max(abs(a - b)
                                        for a, b in zip(ours["losses"], theirs["losses"])),
            decode=[statistics.median(run["decode_tokens_per_second"]) for run in sides]))
    return rows


def table(results: dict) -> str:
    lines = [f"SmolLM2-135M, {results['rows']} rows, LoRA r={results['rank']} on all linears, "
             f"{results['threads']} threads; the other side is the default recipe of HF PEFT",
             f"{'':<12}{'s/step':>8}{'HF PEFT':>9}{'ratio (quartiles)':>19}{'peak MB':>10}"
             f"{'HF PEFT':>9}{'ratio':>7}{'losses apart':>15}{'decode tok/s':>14}{'HF PEFT':>9}"]
    for row in ratios(results):
        mega = [f"{peak / 1e6:.0f}" if peak else "-" for peak in row["peaks"]]
        memory = f"{row['memory_ratio']:.2f}" if row["memory_ratio"] else "-"
        ratio = (f"{row['time_ratio']:.2f} ({row['time_ratio_low']:.2f}-"
                 f"{row['time_ratio_high']:.2f})")
        lines.append(f"{row['method']:<6}{row['dtype']:<6}{row['seconds'][0]:>8.2f}"
                     f"{row['seconds'][1]:>9.2f}{ratio:>19}{mega[0]:>10}{mega[1]:>9}{memory:>7}"
                     f"{row['largest_loss_difference']:>15.1e}"
                     f"{row['decode'][0]:>14.1f}{row['decode'][1]:>9.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    folder, *job = json.loads(sys.argv[1])
    work(Path(folder), *job)
