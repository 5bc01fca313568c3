"""Checks that compute everything when they run: shapes, arithmetic, and what holds bit for bit."""
import math

import torch
from torch import nn

from ...adapter import Adapter
from ...gpt import GPT, GPTConfig
from ...houlsby import HoulsbyConfig
from ...lora import LoraConfig, LoraLinear
from ...nf4 import NF4Linear
from ...peft_model import get_peft_model
from ...prefix import PrefixAttention, PrefixTuningConfig
from ...prompt import PromptTuningConfig
from .claim import Value, exact, fact, within
from .counts import (GB, GiB, largest_below_one_percent, meta_gpt, parameters, planned,
                     quantized_bytes, share, trained)

QV8 = LoraConfig(r=8)                                          # on q_proj and v_proj


def all_linear(r: int) -> LoraConfig:
    return LoraConfig(r=r, target_modules="all-linear")


def small_gpt() -> GPT:
    """Two layers with random weights, the same in every check."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT(GPTConfig(vocab_size=61, hidden_size=32, intermediate_size=64,
                             num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                             max_position_embeddings=64))


def some_ids(tokens: int = 7) -> torch.Tensor:
    return torch.arange(tokens)[None] % 61                                         # (1, T)


@torch.no_grad()
def disturb(model: nn.Module) -> nn.Module:
    """Every trainable number moved, as training would."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def ten_thousand_times(_) -> list[Value]:
    gpt3 = 96 * 2 * 4 * (12288 + 12288)      # layers, q and v, r, in + out: r = 4
    base = parameters("llama-2-70b")
    return [exact("70e9 / 10e6", 70e9 / 10e6, 7000, "times"),
            exact("GPT-3, q and v, r = 4 (the paper's)", 175_255.8e6 / gpt3, 9285, "times", 0.5),
            exact("Llama-2-70B, q and v, r = 8", base / trained("llama-2-70b", QV8), 4210,
                  "times", 0.5),
            exact("Llama-2-70B, all linears, r = 16",
                  base / trained("llama-2-70b", all_linear(16)), 333, "times", 0.5)]


def three_times_less_memory(_) -> list[Value]:
    N, n = parameters("llama-2-7b"), trained("llama-2-7b", all_linear(16))
    ratios = [planned("llama-2-7b", "full", batch=B, seq=T)
              / planned("llama-2-7b", "lora", r=16, batch=B, seq=T)
              for B, T in ((1, 512), (8, 2048))]
    return [exact("the paper's GPT-3, 1.2 TB / 350 GB", 1200 / 350, 3.43, "times", 0.005),
            exact("Llama-2-7B, weights, gradients and AdamW", 16 * N / (2 * N + 16 * n), 7.64,
                  "times", 0.005),
            exact("the same and activations, 1 x 512 tokens", ratios[0], 6.50, "times", 0.005),
            exact("8 x 2048 tokens, no checkpointing", ratios[1], 1.97, "times", 0.005)]


def seven_b_on_16_gib(_) -> list[Value]:
    sizes = dict(r=16, batch=1, seq=512, checkpointing=True)
    return [exact("weights of Llama-2-7B in bf16", 2 * parameters("llama-2-7b") / GiB, 12.55,
                  "GiB", 0.005),
            exact("LoRA, r = 16, 1 x 512 tokens, checkpointing",
                  planned("llama-2-7b", "lora", **sizes) / GiB, 13.42, "GiB", 0.005),
            exact("QLoRA, the same", planned("llama-2-7b", "qlora", **sizes) / GiB, 4.47, "GiB",
                  0.005),
            exact("weights of Llama-3-8B in bf16", 2 * parameters("llama-3-8b") / GiB, 14.96,
                  "GiB", 0.005)]


def less_than_one_percent(_) -> list[Value]:
    per_rank = {name: trained(name, all_linear(1)) for name in ("llama-2-7b", "llama-2-70b")}
    return [exact("Llama-2-7B, q and v, r = 8", share("llama-2-7b", QV8), 0.0622, "%", 5e-5),
            exact("all linears, r = 16", share("llama-2-7b", all_linear(16)), 0.5898, "%", 5e-5),
            exact("all linears, r = 64", share("llama-2-7b", all_linear(64)), 2.3181, "%", 5e-5),
            exact("SmolLM2-135M, all linears, r = 16", share("smollm2-135m", all_linear(16)),
                  3.5039, "%", 5e-5),
            *(exact(f"{name}, all linears: below 1 % up to r",
                    largest_below_one_percent(name, per_rank[name]), wanted)
              for name, wanted in (("llama-2-7b", 27), ("llama-2-70b", 53)))]


def checkpoint_140_gb(_) -> list[Value]:
    return [exact("Llama-2-70B in 16 bits", 2 * parameters("llama-2-70b") / GB, 137.95, "GB",
                  0.005),
            exact("the same", 2 * parameters("llama-2-70b") / GiB, 128.48, "GiB", 0.005),
            exact("Llama-3-70B in 16 bits", 2 * parameters("llama-3-70b") / GB, 141.11, "GB",
                  0.005)]


def a_terabyte(_) -> list[Value]:
    N = parameters("llama-2-70b") / GB
    return [exact("gradients 2 + master copy 4 + moments 8 bytes", 14 * N, 966, "GB", 0.5),
            exact("with the weights", 16 * N, 1104, "GB", 0.5),
            exact("everything in bf16: gradients 2 + moments 4 bytes", 6 * N, 414, "GB", 0.5)]


def sixty_five_b_on_48_gib(_) -> list[Value]:
    run = planned("llama-65b", "qlora", r=64, batch=1, seq=512, checkpointing=True)
    return [exact("LLaMA-65B in NF4, the rest in bf16", quantized_bytes("llama-65b") / GB, 34.46,
                  "GB", 0.005),
            exact("QLoRA, r = 64, 1 x 512 tokens, checkpointing", run / GB, 48.2, "GB", 0.05),
            exact("the same", run / GiB, 44.87, "GiB", 0.005),
            fact("fits 48 GiB", run < 48 * GiB),
            fact("fits 48 GB, 48 x 10^9 bytes", run < 48 * GB, wanted=False)]


def double_quantization(_) -> list[Value]:
    once, twice = 32 / 64, 8 / 64 + 32 / (64 * 256)
    saved = quantized_bytes("llama-65b", double_quant=False) - quantized_bytes("llama-65b")
    layer = NF4Linear(4096, 4096, bias=False)
    return [exact("constants, before", once, 0.5, "bits a weight"),
            exact("constants, after", twice, 0.126953, "bits a weight", 5e-7),
            exact("weight and constants, counted in a layer",
                  sum(b.nbytes for b in layer.buffers()) / 4096**2, 0.51587, "bytes", 5e-6),
            exact("saved at LLaMA-65B, counted", saved / GB, 3.02, "GB", 0.005)]


def the_printed_line(_) -> list[Value]:
    n, total = get_peft_model(meta_gpt("llama-2-7b"), QV8).get_nb_trainable_parameters()
    return [exact("trainable params", n, 4_194_304), exact("all params", total, 6_742_609_920),
            exact("trainable%", round(100 * n / total, 4), 0.0622, "%")]


def prompt_below_a_tenth_percent(_) -> list[Value]:
    config = PromptTuningConfig(20)
    return [exact("Llama-2-7B, 20 virtual tokens", trained("llama-2-7b", config), 81920),
            exact("the same", share("llama-2-7b", config), 0.0012, "%", 5e-5),
            exact("T5-XXL, 100 x 4096 of 11e9", 100 * 100 * 4096 / 11e9, 0.0037, "%", 5e-5),
            exact("the tiny GPT, P = 16", share("tiny", PromptTuningConfig(16)), 0.2139, "%",
                  5e-5)]


def keys_and_values_in_every_layer(_) -> list[Value]:
    model = get_peft_model(small_gpt(), PrefixTuningConfig(5))
    places = [m for m in model.modules() if isinstance(m, PrefixAttention)]
    return [exact("prefixes in a model of 2 layers", len(places), 2),
            exact("Llama-2-7B, P = 20: 2 L P d_kv",
                  trained("llama-2-7b", PrefixTuningConfig(20)), 2 * 32 * 20 * 4096),
            exact("Llama-3-8B, P = 20: d_kv is 1024, not 4096",
                  trained("llama-3-8b", PrefixTuningConfig(20)), 2 * 32 * 20 * 1024)]


def context_used_up(_) -> list[Value]:
    longest = {}
    for config in (PrefixTuningConfig(8), PromptTuningConfig(8)):
        model = get_peft_model(small_gpt(), config)
        longest[config.peft_type] = max(T for T in range(50, 65) if accepts(model, T))
    return [exact("longest text of 64 positions, prefix P = 8", longest["PREFIX_TUNING"], 56),
            exact("the same, soft prompt P = 8", longest["PROMPT_TUNING"], 56),
            exact("P = 20 of Llama-2's 4096", 100 * 20 / 4096, 0.49, "%", 0.005)]


def accepts(model: nn.Module, tokens: int) -> bool:
    try:
        with torch.no_grad():
            model(some_ids(tokens))
    except ValueError:
        return False
    return True


def three_percent_adapters(_) -> list[Value]:
    def houlsby(L, C, m):
        return 2 * L * (2 * m * C + C + m)
    third = next(m for m in range(1, 4096)
                 if houlsby(32, 4096, m) >= 0.03 * parameters("llama-2-7b"))
    return [exact("BERT-large, m = 64", houlsby(24, 1024, 64) / 1e6, 6.34, "million", 0.005),
            exact("BERT-large, m = 256", houlsby(24, 1024, 256) / 1e6, 25.2, "million", 0.05),
            exact("Llama-2-7B, m = 64", trained("llama-2-7b", HoulsbyConfig(64)),
                  houlsby(32, 4096, 64)),
            exact("the same", share("llama-2-7b", HoulsbyConfig(64)), 0.50, "%", 0.005),
            exact("Llama-2-7B, 3 % wants m", third, 386)]


def shapes_as_written(_) -> list[Value]:
    d, r = 4096, 8
    A, B = torch.empty(d, r, device="meta"), torch.empty(r, d, device="meta")
    return [exact("rows of B A, with A (d, r) and B (r, d)", len(B @ A), 8),
            exact("rows of W", d, 4096),
            exact("rows of B A, with B (d, r) and A (r, d)", len(A @ B), 4096)]


def without_the_scale(_) -> list[Value]:
    model = small_gpt()
    config = LoraConfig(r=8, lora_alpha=32)
    layer = disturb(get_peft_model(model, config)).get_submodule(
        "base_model.model.layers.0.self_attn.q_proj")
    W0, BA = layer.base_layer.weight, layer.lora_B.weight @ layer.lora_A.weight
    meant = layer.merge().weight - W0
    return [exact("alpha / r in the notes' own snippet", config.scaling, 4),
            exact("share of the update lost by W + B A",
                  ((meant - BA).norm() / meant.norm()).item(), 0.75, tolerance=1e-5)]


def between_the_layers(_) -> list[Value]:
    model = get_peft_model(small_gpt(), HoulsbyConfig(4))
    paths = [path for path, m in model.named_modules() if isinstance(m, Adapter)]
    inside = [p for p in paths if p.endswith(("self_attn", "mlp"))]
    return [exact("adapters in a model of 2 layers", len(paths), 4),
            exact("of them inside a layer", len(inside), 4)]


def sixteen_bit_adapters(_) -> list[Value]:
    sizes = [next(p for p in get_peft_model(small_gpt(), QV8, **dtype).parameters()
                  if p.requires_grad).itemsize for dtype in ({}, {"adapter_dtype": torch.bfloat16})]
    weight = torch.tensor(0.02, dtype=torch.bfloat16)
    return [exact("bytes a trained number, by default", sizes[0], 4),
            exact("with adapter_dtype=torch.bfloat16", sizes[1], 2),
            exact("what a bf16 weight of 0.02 moves in a step of 5e-5",
                  (weight + 5e-5 - weight).item(), 0)]


def a_few_megabytes(_) -> list[Value]:
    counts = [trained("llama-2-7b", QV8), trained("llama-2-7b", all_linear(64))]
    return [exact("Llama-2-7B, q and v, r = 8, float32", 4 * counts[0] / 1e6, 16.8, "MB", 0.05),
            exact("the same in 16 bits", 2 * counts[0] / 1e6, 8.4, "MB", 0.05),
            exact("all linears, r = 64, 16 bits", 2 * counts[1] / 1e6, 320, "MB", 0.5)]


@torch.no_grad()
def swapping(_) -> list[Value]:
    model = disturb(get_peft_model(small_gpt(), QV8))
    pointers = {p.data_ptr() for p in model.get_base_model().parameters() if not p.requires_grad}
    first = model(some_ids())
    model.add_adapter("other", all_linear(4))
    model.set_adapter("other")
    other = disturb(model)(some_ids())
    model.set_adapter("default")
    now = {p.data_ptr() for p in model.parameters()}
    return [fact("logits after there and back equal, bitwise",
                 torch.equal(first, model(some_ids()))),
            fact("the other adapter's differ", not torch.equal(first, other)),
            exact("base tensors that moved in memory", len(pointers - now), 0)]


def hundreds_of_gb(_) -> list[Value]:
    N = parameters("llama-3-70b")
    return [exact("parameters of Llama-3-70B", N, 70_553_706_496),
            exact("weights, gradients and mixed-precision AdamW", 16 * N / GB, 1129, "GB", 0.5),
            exact("everything in bf16", 8 * N / GB, 564, "GB", 0.5)]


def a_subset(_) -> list[Value]:
    model = small_gpt()
    own = {id(p) for p in model.parameters()}
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapted = get_peft_model(model, QV8)
    trained_own = [p for p in adapted.parameters() if p.requires_grad and id(p) in own]
    disturb(adapted)
    after = dict(adapted.unload().named_parameters())
    return [exact("parameters of the model that are trained", len(trained_own), 0),
            exact("of them changed after training and unloading",
                  sum(not torch.equal(before[name], after[name]) for name in before), 0)]


def gaussian_a_zero_b(_) -> list[Value]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {init: LoraLinear(nn.Linear(4096, 64), LoraConfig(r=64, init_lora_weights=init),
                                   torch.float32) for init in ("gaussian", True)}
    A = {init: layer.lora_A.weight.detach() for init, layer in layers.items()}
    bound = 1 / math.sqrt(4096)
    B = layers["gaussian"].lora_B.weight
    return [exact("largest |B| at the start", B.abs().max().item(), 0),
            within("standard deviation of A, gaussian, x sqrt(in)",
                   A["gaussian"].std().item() / bound, 0.98, 1.02),
            within("largest |A|, HuggingFace's default, x sqrt(in)",
                   A[True].abs().max().item() / bound, 0.99, 1)]


def loaded_in_four_bits(_) -> list[Value]:
    size, N = quantized_bytes("llama-2-7b"), parameters("llama-2-7b")
    return [exact("Llama-2-7B at 4 bits flat", N / 2 / GB, 3.37, "GB", 0.005),
            exact("with constants, and embedding, head and norms in bf16", size / GB, 3.87, "GB",
                  0.005),
            exact("that is", 8 * size / N, 4.59, "bits a parameter", 0.005)]
