"""Checks that look at measurements too: losses, exact match, seconds, forgetting.

Percent and points are of compare's results; a range is what the verdict needs, not what one machine
happened to measure.
"""
import math
import statistics

import torch

from ...files import read_json
from ...lab.rates import LEARNING_RATES
from ...lab.summary import forgetting, latency_overhead, measured, shares
from ...peft_model import get_peft_model
from .claim import Value, exact, fact, within
from .computed import QV8, all_linear, disturb, small_gpt, some_ids
from .counts import GB, parameters, quantized_bytes, trained, training_flops
from .measured import Measurements


def gap(m: Measurements, arm: str, task: str) -> float:
    """Points of exact match against full fine-tuning, mean over the seeds."""
    ours, full = (statistics.mean(shares(m.compare, name, task)) for name in (arm, "full"))
    return 100 * (ours - full)


def gaps(m: Measurements, arm: str, low: float) -> list[Value]:
    return [within(f"exact match against full fine-tuning, {task}", gap(m, arm, task), low, 100,
                   "points") for task in m.compare["tasks"]]


def overhead(m: Measurements, name: str, low: float, high: float, arm: str, rows: int,
             form: str | None = None) -> Value:
    """Percent of time beyond the unadapted model's, one forward pass."""
    return within(name, latency_overhead(m.compare, arm, rows, form), low, high, "%")


def usual_ranks(m: Measurements) -> list[Value]:
    return [*(exact(f"Llama-2-7B, all linears, r = {r}", trained("llama-2-7b", all_linear(r)), n)
              for r, n in ((8, 19_988_480), (16, 39_976_960), (64, 159_907_840))),
            within("exact match on NOVEL with r = 1 on all linears",
                   100 * m.ranks["exact_match"]["r=1"], 95, 100, "%")]


def one_percent_of_the_cost(m: Measurements) -> list[Value]:
    full = training_flops("llama-2-7b", None)
    flops = [training_flops("llama-2-7b", config) / full
             for config in (QV8, all_linear(16), all_linear(64))]
    time = [m.compare["costs"][arm]["step"]["median"] for arm in ("lora", "full")]
    return [exact("operations of a step, q and v, r = 8", flops[0], 0.671, "of full fine-tuning's",
                  0.0005),
            exact("all linears, r = 16", flops[1], 0.677, "of full fine-tuning's", 0.0005),
            exact("all linears, r = 64", flops[2], 0.694, "of full fine-tuning's", 0.0006),
            within("time of a step, tiny GPT on a CPU", time[0] / time[1], 0.5, 2,
                   "of full fine-tuning's"), *gaps(m, "lora", -5)]


@torch.no_grad()
def zero_latency_when_merged(m: Measurements) -> list[Value]:
    model = disturb(get_peft_model(small_gpt(), QV8))
    before = model(some_ids())
    merged = model.merge_and_unload()
    kinds = [[(path, type(module)) for path, module in gpt.named_modules()]
             for gpt in (merged, small_gpt())]
    difference = (merged(some_ids()) - before).abs().max() / before.abs().max()
    return [fact("merged model: the base's modules, nothing else", kinds[0] == kinds[1]),
            within("largest difference of logits, float32", difference.item(), 0, 1e-5),
            within("rounding of a merge in bf16, update 1 % of W", 100 * bf16_merge_error(0.01),
                   10, 30, "% of the update"),
            overhead(m, "latency merged, batch 1", -30, 30, "lora", 1, "merged"),
            overhead(m, "unmerged, batch 1", 20, math.inf, "lora", 1, "as trained")]


def bf16_merge_error(size: float) -> float:
    """|what the merge added - what it should have| / |that|, for an update `size` times W."""
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(512, 512, generator=draw).bfloat16()
    delta = torch.randn(512, 8, generator=draw) @ torch.randn(8, 512, generator=draw)
    delta *= size * W.float().norm() / delta.norm()
    merged = (W.float() + delta).bfloat16().float()
    return ((merged - W.float() - delta).norm() / delta.norm()).item()


def near_full(m: Measurements) -> list[Value]:
    return gaps(m, "lora", -5)


def slow_dequantization(m: Measurements) -> list[Value]:
    rebuild = {tokens: 100 * 2 / (2 + 2 * tokens) for tokens in (1, 512)}   # 2 operations a weight
    return [exact("share of the operations that rebuild W, one token", rebuild[1], 50, "%"),
            exact("512 tokens", rebuild[512], 0.195, "%", 0.0005),
            overhead(m, "a forward pass of 64 tokens", 20, math.inf, "qlora", 1),
            overhead(m, "32 rows of 64 tokens", 0, math.inf, "qlora", 32),
            overhead(m, "merged, 32 rows", -30, 30, "qlora", 32, "merged")]


def qlora_near_full(m: Measurements) -> list[Value]:
    against_lora = [gap(m, "qlora", task) - gap(m, "lora", task) for task in m.compare["tasks"]]
    return [*gaps(m, "qlora", -5), within("against LoRA, worst task", min(against_lora), -5, 100,
                                          "points")]


def prompt_latency(m: Measurements) -> list[Value]:
    kv_bytes = 2 * 32 * 4096 * 2             # keys and values, layers, width, bf16
    return [exact("cache of one position, Llama-2-7B in bf16", kv_bytes, 524_288, "bytes"),
            exact("of 20 virtual tokens, for each sequence", 20 * kv_bytes / 1e6, 10.5, "MB", 0.05),
            exact("positions computed, P = 16 and 64 tokens of text", (16 + 64) / 64, 1.25,
                  "times"),
            overhead(m, "latency, 32 rows", 2, 100, "prompt", 32)]


def prompt_is_lower(m: Measurements) -> list[Value]:
    scores = {task: 100 * statistics.mean(shares(m.compare, "prompt", task))
              for task in ("elicit", "novel")}
    return [within("exact match where the skill is in the base", scores["elicit"], 90, 100, "%"),
            within("where it has to be learned", scores["novel"], 0, 20, "%")]


def adapter_latency(m: Measurements) -> list[Value]:
    return [overhead(m, "latency, batch 1", 5, math.inf, "houlsby", 1),
            overhead(m, "batch 32", 0, 60, "houlsby", 32)]


def good_and_medium(m: Measurements) -> list[Value]:
    N, n = parameters("llama-2-7b") / GB, trained("llama-2-7b", all_linear(16)) / GB
    saved = 100 * (1 - (2 * N + 16 * n) / (16 * N))
    return [*gaps(m, "houlsby", -10),
            exact("static bytes saved at 7B by 40 million trained numbers, LoRA's or an adapter's",
                  saved, 86.9, "%", 0.05)]


@torch.no_grad()
def forgetting_mitigated(m: Measurements) -> list[Value]:
    model = small_gpt()
    before = model(some_ids())
    adapted = disturb(get_peft_model(model, all_linear(4)))
    changed = not torch.equal(adapted(some_ids()), before)
    restored = torch.equal(adapted.unload()(some_ids()), before)
    lost = {arm: statistics.mean(forgetting(run) for run in m.compare["runs"]
                                 if (run["arm"], run["task"]) == (arm, "novel"))
            for arm in ("full", "houlsby")}
    return [fact("the adapted model answers differently", changed),
            fact("after unload the base answers as before, bitwise", restored),
            within("Houlsby adapters forgot more than full fine-tuning",
                   lost["houlsby"] - lost["full"], 0.2, math.inf, "nats a token"),
            within("LoRA at its largest rate against its smallest", by_rate("lora"), 0.2, math.inf,
                   "nats a token more")]


def by_rate(arm: str) -> float:
    """Mean forgetting on NOVEL at the largest rate of the stored sweep minus at the smallest."""
    sweep = read_json(LEARNING_RATES)
    runs = [run for run in sweep["runs"]
            if (run["arm"], run["task"]) == (arm, "novel") and run["loss"] is not None]
    rates = [run["lr"] for run in runs]
    high, low = (statistics.mean(forgetting(run) for run in runs if run["lr"] == lr)
                 for lr in (max(rates), min(rates)))
    return high - low


def low_intrinsic_rank(m: Measurements) -> list[Value]:
    update = list(m.ranks["update"].values())
    A, B = disturb(get_peft_model(small_gpt(), QV8)).get_submodule(
        "base_model.model.layers.0.self_attn.q_proj").own_state().values()
    share, width = 100 * m.ranks["energy"], m.ranks["width"]
    return [exact("rank of B A with r = 8, width 32", torch.linalg.matrix_rank(B @ A).item(), 8),
            within(f"rank of full fine-tuning's own update, {share:.0f} % of it, median, "
                   f"of {width}", statistics.median(update), 9, width),
            within("exact match of LoRA with r = 1 on the same task",
                   100 * m.ranks["exact_match"]["r=1"], 95, 100, "%")]


def full_is_best(m: Measurements) -> list[Value]:
    best_rival = {task: max(gap(m, arm, task) for arm in ("lora", "qlora", "houlsby"))
                  for task in m.compare["tasks"]}
    return [exact("share of the parameters trained", measured(m.compare, "full")["updates"], 100,
                  "%"),
            *(within(f"best adapter against full fine-tuning, {task}", value, -5, 100, "points")
              for task, value in best_rival.items())]


def high_and_very_high(m: Measurements) -> list[Value]:
    N, n = parameters("llama-2-7b"), trained("llama-2-7b", all_linear(16))
    static = {"LoRA": 2 * N + 16 * n, "QLoRA": quantized_bytes("llama-2-7b") + 16 * n}
    return [*(exact(f"{name} at 7B, r = 16: weights, gradients, AdamW saved",
                    100 * (1 - size / (16 * N)), wanted, "%", 0.05)
              for (name, size), wanted in zip(static.items(), (86.9, 95.8))),
            *(within(f"{name} on the tiny GPT, activations included",
                     measured(m.compare, arm)["memory"], 10, 60, "%")
              for name, arm in (("LoRA", "lora"), ("QLoRA", "qlora")))]
