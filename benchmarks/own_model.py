"""What to expect of a model of one's own: memory as planned, time as extrapolated. For
docs/own_model.md:

    python benchmarks/own_model.py

Memory is the planner's: LoRA or QLoRA, r = 8 on every linear layer, one sequence of 512 tokens a
forward pass, activations recomputed. Seconds are no measurement: those of SmolLM2-135M on the two
cores of results/step.json, per token that was computed, times the ratio of the parameters, and
3/2 for the forward pass that is computed twice.
"""
import statistics

import torch

from minipeft import GPT, GPTConfig
from minipeft.files import RESULTS, read_json
from minipeft.gpt import RopeScaling
from minipeft.lab import bench_step, memory
from minipeft.llm import smollm2
from minipeft.llm.chat import batch_plan, encode_example, read_jsonl
from minipeft.llm.gguf import GGUF
from minipeft.llm.gguf_model import read_tokenizer

QWEN = dict(biases=("q_proj", "k_proj", "v_proj"), max_position_embeddings=32768,
            rope_theta=1e6, rms_norm_eps=1e-6)
LLAMA = dict(vocab_size=128256, intermediate_size=8192, num_key_value_heads=8,
             max_position_embeddings=131072, rope_theta=500000.0, rms_norm_eps=1e-5,
             tie_word_embeddings=True, rope_scaling=RopeScaling("llama3", 32.0))
# from the models' own config.json files
MODELS = {
    "Qwen2.5-0.5B": GPTConfig(**QWEN, vocab_size=151936, hidden_size=896, intermediate_size=4864,
                              num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                              tie_word_embeddings=True),
    "Llama-3.2-1B": GPTConfig(**LLAMA, hidden_size=2048, num_hidden_layers=16,
                              num_attention_heads=32),
    "Llama-3.2-3B": GPTConfig(**LLAMA, hidden_size=3072, num_hidden_layers=28,
                              num_attention_heads=24),
    "Qwen2.5-7B": GPTConfig(**QWEN, vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                            num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
}
CARDS = (4, 6, 8, 12, 16, 24, 48, 80)        # GB; CUDA takes about one
TOKENS, RANK, RECOMPUTED = 512, 8, 3 / 2


def parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


def planned(config: GPTConfig, method: str) -> int:
    """Bytes of a step."""
    run = memory.Run(config, method, RANK, 1, TOKENS, "bf16", checkpointing=True)
    return sum(memory.plan(run).values())


def computed_tokens(steps: int) -> float:
    """Of a step of the bench, on average: what its rows begin with alike counts once."""
    tokenizer, counts = read_tokenizer(GGUF(smollm2.find_gguf())), []
    rows = [encode_example(messages, lambda text: tokenizer.encode(text).ids)
            for messages in read_jsonl(bench_step.TEXTS)]
    plan = batch_plan([len(ids) for ids, _ in rows], bench_step.ROWS, seed=0)
    for _ in range(steps):
        chosen = [rows[i] for i in next(plan)]
        first = min(next(n for n, label in enumerate(labels) if label >= 0) for _, labels in chosen)
        alike = next(n for n in range(first + 1)
                     if n == first or len({ids[n] for ids, _ in chosen}) > 1)
        counts.append(max(len(ids) for ids, _ in chosen) * len(chosen)
                      - alike * (len(chosen) - 1))
    return statistics.mean(counts)


def measured() -> dict[str, float]:
    """Seconds a computed token of SmolLM2, in bfloat16."""
    stored = read_json(RESULTS / "step.json")
    tokens = computed_tokens(stored["steps"])
    return {"qlora" if run["four_bit"] else "lora": statistics.median(run["seconds"]) / tokens
            for run in stored["runs"] if run["side"] == "minipeft" and run["dtype"] == "bf16"}


def table() -> str:
    seconds, small = measured(), parameters(GPTConfig.preset("smollm2-135m"))
    lines = [f"{'':31}{'memory, GiB':>16}{'smallest card':>17}{'seconds a step':>20}",
             f"{'':14}{'parameters':>15}{'LoRA':>10}{'QLoRA':>8}{'LoRA':>9}{'QLoRA':>8}"
             f"{'LoRA':>11}{'QLoRA':>9}"]
    for name, config in MODELS.items():
        N = parameters(config)
        gib = [planned(config, method) / memory.GiB for method in ("lora", "qlora")]
        step = [8 * TOKENS * seconds[method] * RECOMPUTED * N / small
                for method in ("lora", "qlora")]
        cards = [f"{next(card for card in CARDS if size <= card - 1)} GB" for size in gib]
        lines.append(f"{name:14}{N:>15,}{gib[0]:>10.2f}{gib[1]:>8.2f}{cards[0]:>9}{cards[1]:>8}"
                     f"{step[0]:>9,.0f} *{step[1]:>7,.0f} *")
    rates = " and ".join(f"{1 / s:.0f}" for s in seconds.values())
    return "\n".join([*lines, f"* extrapolated, not measured: from SmolLM2-135M's {rates} computed "
                              f"tokens a second on 2 cores"])


if __name__ == "__main__":
    print(table())
