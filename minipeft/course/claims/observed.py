"""Checks that look at measurements too: losses, exact match, seconds, forgetting.

Percent and points are of compare's results; a range is what the verdict needs, not what one machine
happened to measure.
"""
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from ...lab import graded, tool_calls
from ...lab.compare import PHASES
from ...lab.rates import means, stored_means
from ...lab.summary import latency_overhead, measured, shares
from ...peft_model import get_peft_model
from ...recipes import RECIPES
from .claim import Value, exact, fact, within
from .computed import QV8, all_linear, disturb, small_gpt, some_ids
from .counts import parameters, planned, quantized_bytes, trained, training_flops
from .measured import Measurements


def gap(m: Measurements, arm: str, task: str) -> float:
    """Points of what is learned against full fine-tuning, mean over the seeds."""
    ours, full = (statistics.mean(shares(m.compare, name, task)) for name in (arm, "full"))
    return 100 * (ours - full)


def quality(m: Measurements, arm: str, fast: tuple[float, float], end: tuple[float, float]
            ) -> list[Value]:
    """Points against full fine-tuning: on the graded task in few steps and at the end, then on the
    two tasks that most methods solve."""
    quick = [statistics.mean(graded.learned(m.graded, name, graded.FAST)) for name in (arm, "full")]
    (_, last, _), (_, full_last, _) = (graded.at_the_end(m.graded, name)
                                       for name in (arm, "full"))
    return [within(f"eight languages in {graded.FAST} steps, bits against full fine-tuning",
                   100 * (quick[0] - quick[1]), *fast, "points"),
            within("the same when more steps add less than a point",
                   100 * (statistics.mean(last) - statistics.mean(full_last)), *end, "points"),
            *(within(f"exact match against full fine-tuning, {task}", gap(m, arm, task), -5, 100,
                     "points") for task in ("elicit", "novel"))]


def rank_one(m: Measurements, value: Callable[[dict], float], task: str = "novel") -> float:
    """Of the stored runs of LoRA with r = 1 on all linears, mean over the seeds."""
    return statistics.mean(value(run) for run in m.graded if run["split"] == "report"
                           and (run["arm"], run["size"], run["task"]) == ("lora", 1, task))


def overhead(m: Measurements, name: str, low: float, high: float, arm: str, phase: str, rows: int,
             form: str | None = None) -> Value:
    """Percent of time beyond the unadapted model's."""
    return within(name, latency_overhead(m.compare, arm, phase, rows, form), low, high, "%")


def usual_ranks(m: Measurements) -> list[Value]:
    one = means([run for run in m.graded if run["split"] == "sweep"
                 and (run["arm"], run["size"], run["task"]) == ("lora", 1, "novel")])
    shares_ = [statistics.mean(graded.learned(m.graded, "lora", graded.FAST, size))
               for size in (1, None)]
    return [*(exact(f"Llama-2-7B, all linears, r = {r}", trained("llama-2-7b", all_linear(r)), n)
              for r, n in ((8, 19_988_480), (16, 39_976_960), (64, 159_907_840))),
            within("exact match with r = 1 on all linears, one language of 203 bits",
                   100 * rank_one(m, lambda run: run["exact_match"]), 90, 100, "%"),
            within(f"eight languages in {graded.FAST} steps, r = 1 against r = 8",
                   100 * (shares_[0] - shares_[1]), -100, -10, "points of the bits"),
            within("r = 1 against r = 8 at the same loss or a lower one, forgot",
                   at_equal_loss(one, rates_of("lora")), 0.1, math.inf, "nats per token more")]


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
                   "of full fine-tuning's"), *quality(m, "lora", (-100, -10), (-3, 3))]


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
            *(overhead(m, f"{phase} merged, batch 1", -15, 15, "lora", phase, 1, "merged")
              for phase in PHASES),
            *(overhead(m, f"{phase} unmerged, batch 1", 20, math.inf, "lora", phase, 1,
                       "as trained") for phase in PHASES)]


def bf16_merge_error(size: float) -> float:
    """|what the merge added - what it should have| / |that|, for an update `size` times W."""
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(512, 512, generator=draw).bfloat16()
    delta = torch.randn(512, 8, generator=draw) @ torch.randn(8, 512, generator=draw)
    delta *= size * W.float().norm() / delta.norm()
    merged = (W.float() + delta).bfloat16().float()
    return ((merged - W.float() - delta).norm() / delta.norm()).item()


def near_full(m: Measurements) -> list[Value]:
    return quality(m, "lora", (-100, -10), (-3, 3))


def calls(m: Measurements, arm: str, other: str) -> Value:
    """Points of SmolLM2's tool calls, exactly right, over those of another method, each at the rate
    that a sweep with seeds of its own has chosen."""
    names = [RECIPES[each].label for each in (arm, other)]
    mean = tool_calls.difference(*(tool_calls.report(m.calls, each) for each in (arm, other))).mean
    return within(f"SmolLM2, tool calls in {tool_calls.budget(m.calls)} steps, exact match, "
                  f"{names[0]} against {names[1]}", 100 * mean, -5, 5, "points")


def slow_dequantization(m: Measurements) -> list[Value]:
    rebuild = {tokens: 100 * 2 / (2 + 2 * tokens) for tokens in (1, 512)}   # 2 operations a weight
    return [exact("share of the operations that rebuild W, one token", rebuild[1], 50, "%"),
            exact("512 tokens", rebuild[512], 0.195, "%", 0.0005),
            overhead(m, "decode, one row", 20, math.inf, "qlora", "decode", 1),
            overhead(m, "prefill of 64 tokens", 20, math.inf, "qlora", "prefill", 1),
            overhead(m, "prefill of 32 rows", 0, math.inf, "qlora", "prefill", 32),
            overhead(m, "merged, decode", -15, 15, "qlora", "decode", 1, "merged"),
            *(within(f"SmolLM2, a token written, {name}", 100 * (seconds - 1), -60, -3, "%")
              for name, seconds in (
                  ("4-bit base beyond the float32 one", decode_time(m, "4-bit", "dense")),
                  ("QLoRA as trained beyond the base", decode_time(m, "QLoRA", "dense"))))]


def decode_time(m: Measurements, method: str, other: str) -> float:
    """Time per token as a multiple of another model's, float32, one row, one thread."""
    rates = {case["method"]: case["tokens_per_second"]["minipeft"]["median"]
             for case in m.decode["cases"]
             if (case["dtype"], case["batch"], case["threads"]) == ("fp32", 1, 1)}
    return rates[other] / rates[method]


def qlora_near_full(m: Measurements) -> list[Value]:
    ours, lora = (statistics.mean(graded.at_the_end(m.graded, arm)[1]) for arm in ("qlora", "lora"))
    return [*quality(m, "qlora", (-100, -10), (-3, 3)),
            within("against LoRA at the end", 100 * (ours - lora), -3, 3, "points"),
            calls(m, "qlora", "lora")]


def prompt_latency(m: Measurements) -> list[Value]:
    kv_bytes = 2 * 32 * 4096 * 2             # keys and values, layers, width, bf16
    return [exact("cache of one position, Llama-2-7B in bf16", kv_bytes, 524_288, "bytes"),
            exact("of 20 virtual tokens, for each sequence", 20 * kv_bytes / 1e6, 10.5, "MB", 0.05),
            exact("positions computed, P = 16 and 64 tokens of text", (16 + 64) / 64, 1.25,
                  "times"),
            overhead(m, "prefill of 32 rows, computed anew", 5, 100, "prompt", "prefill", 32),
            overhead(m, "with its keys and values kept", -10, 15, "prompt", "prefill", 32,
                     "cached")]


def prompt_is_lower(m: Measurements) -> list[Value]:
    scores = {task: 100 * statistics.mean(shares(m.compare, "prompt", task))
              for task in ("elicit", "novel")}
    steps, last, _ = graded.at_the_end(m.graded, "prompt")
    return [within("exact match where the skill is in the base", scores["elicit"], 90, 100, "%"),
            within("where it has to be learned", scores["novel"], 0, 20, "%"),
            within(f"eight new languages after {steps} steps, bits",
                   100 * statistics.mean(last), -5, 20, "%")]


def adapter_latency(m: Measurements) -> list[Value]:
    return [*(overhead(m, f"{phase}, batch 1", 5, math.inf, "houlsby", phase, 1)
              for phase in PHASES),
            overhead(m, "prefill, batch 32", 0, 60, "houlsby", "prefill", 32)]


def good_and_medium(m: Measurements) -> list[Value]:
    sizes = {"lora": 16, "houlsby": 76}                  # equal numbers of trained parameters
    counts = [trained("llama-2-7b", RECIPES[arm].config(size)) / 1e6 for arm, size in sizes.items()]
    saved = [100 * (1 - planned("llama-2-7b", arm, r=size, batch=8, seq=512)
                    / planned("llama-2-7b", "full", batch=8, seq=512))
             for arm, size in sizes.items()]
    return [*quality(m, "houlsby", (-100, -10), (-10, 3)),
            exact("LoRA of r = 16 at 7B, trained", counts[0], 39.98, "million", 0.005),
            exact("adapters of m = 76", counts[1], 40.1, "million", 0.05),
            exact("saved of full fine-tuning's memory at 8 x 512 tokens, LoRA", saved[0], 72.12,
                  "%", 0.005),
            exact("adapters", saved[1], 72.74, "%", 0.005)]


@torch.no_grad()
def forgetting_mitigated(m: Measurements) -> list[Value]:
    model = small_gpt()
    before = model(some_ids())
    adapted = disturb(get_peft_model(model, all_linear(4)))
    changed = not torch.equal(adapted(some_ids()), before)
    restored = torch.equal(adapted.unload()(some_ids()), before)
    return [fact("the adapted model answers differently", changed),
            fact("after unload the base answers as before, bitwise", restored),
            within("LoRA at the largest rate that solves it against the smallest",
                   by_rate("lora"), 0.2, math.inf, "nats per token more"),
            *(within(f"{RECIPES[arm].label} against full fine-tuning at the same loss or a lower "
                     f"one", at_equal_loss(rates_of(arm), rates_of("full")), least, math.inf,
                     "nats per token more") for arm, least in (("lora", 0.02), ("houlsby", 0.2)))]


def by_rate(arm: str) -> float:
    """Forgetting at the largest rate of the sweep that solves NOVEL minus at the smallest."""
    solved = [found for found in rates_of(arm) if found["share"] >= 0.99]
    return solved[-1]["forgetting"] - solved[0]["forgetting"]


def at_equal_loss(ours: list[dict], theirs: list[dict]) -> float:
    """Of two arms' rates: least forgetting of ours that solve NOVEL, minus the least of theirs that
    end at that loss or below."""
    best = min((found for found in ours if found["share"] >= 0.99),
               key=lambda found: found["forgetting"])
    return best["forgetting"] - min(found["forgetting"] for found in theirs
                                    if found["loss"] <= best["loss"])


def rates_of(arm: str) -> list[dict]:
    """What the stored sweep has of the arm on NOVEL, by rate; diverged rates left out."""
    return sorted((found for found in stored_means() if found["loss"] is not None
                   and (found["task"], found["arm"]) == ("novel", arm)),
                  key=lambda found: found["lr"])


def low_intrinsic_rank(m: Measurements) -> list[Value]:
    update = list(m.ranks["update"].values())
    A, B = disturb(get_peft_model(small_gpt(), QV8)).get_submodule(
        "base_model.model.layers.0.self_attn.q_proj").own_state().values()
    share, width = 100 * m.ranks["energy"], m.ranks["width"]
    return [exact("rank of B A with r = 8, width 32", torch.linalg.matrix_rank(B @ A).item(), 8),
            within(f"rank of full fine-tuning's own update, {share:.0f} % of it, median, "
                   f"of {width}", statistics.median(update), 9, width),
            within("exact match of LoRA with r = 1 on the same task",
                   100 * rank_one(m, lambda run: run["exact_match"]), 90, 100, "%"),
            within("norm of that update against full fine-tuning's",
                   rank_one(m, lambda run: run["update_norm"]) / full_norm(m), 2, math.inf,
                   "times")]


def full_norm(m: Measurements) -> float:
    return statistics.mean(run["update_norm"] for run in m.compare["runs"]
                           if (run["arm"], run["task"]) == ("full", "novel"))


def full_is_best(m: Measurements) -> list[Value]:
    values = zip(*(quality(m, arm, (-100, -10), (-3, 3)) for arm in ("lora", "qlora", "houlsby")))
    return [exact("share of the parameters trained", measured(m.compare, "full")["updates"], 100,
                  "%"),
            *(replace(best, name="best adapter, " + best.name)
              for best in (max(rivals, key=lambda value: value.found) for rivals in values))]


def high_and_very_high(m: Measurements) -> list[Value]:
    N, n = parameters("llama-2-7b"), trained("llama-2-7b", all_linear(16))
    static = {"LoRA": 2 * N + 16 * n, "QLoRA": quantized_bytes("llama-2-7b") + 16 * n}
    return [*(exact(f"{name} at 7B, r = 16: weights, gradients, AdamW saved",
                    100 * (1 - size / (16 * N)), wanted, "%", 0.05)
              for (name, size), wanted in zip(static.items(), (86.9, 95.8))),
            *(within(f"{name} on the tiny GPT, activations included",
                     measured(m.compare, arm)["memory"], 10, 60, "%")
              for name, arm in (("LoRA", "lora"), ("QLoRA", "qlora")))]
