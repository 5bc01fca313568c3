"""The training step and decoding beside HF PEFT: what is computed from the runs, what is stored."""
import json
from pathlib import Path

import pytest
import torch

from minipeft import GPT, GPTConfig
from minipeft.lab import bench_decode, bench_step

STORED = Path(__file__).parent.parent / "benchmarks" / "results" / "step.json"


def made_up_run(side: str, seconds: list[float], peak: float | None, losses: list[float],
                speed: float) -> dict:
    return {"side": side, "dtype": "fp32", "four_bit": False, "losses": losses, "peak_bytes": peak,
            "seconds": [99.0, *seconds],                            # the first step warms up
            "decoded": [], "decode_tokens_per_second": [1.0, speed, 50.0]}


def test_ratios_are_medians_over_the_turns_of_ours_over_theirs_without_the_first():
    runs = [made_up_run("minipeft", [2.0, 6.0, 3.0], 300, [1.0, 0.5], 12.0),     # 1/2, 1/4, 3/4
            made_up_run("HF PEFT", [4.0, 24.0, 4.0], 400, [1.0, 0.4], 10.0)]
    (row,) = bench_step.ratios({"runs": runs})
    assert (row["time_ratio"], row["memory_ratio"]) == (0.5, 0.75)
    assert (row["time_ratio_low"], row["time_ratio_high"]) == (0.375, 0.625)
    assert row["seconds"] == [3.0, 4.0]
    assert row["decode"] == [12.0, 10.0] and row["method"] == "LoRA"
    assert row["largest_loss_difference"] == pytest.approx(0.1)


def test_where_the_system_tells_no_peak_the_table_says_so():
    runs = [made_up_run(side, [1.0, 1.0], None, [1.0], 9.0) for side in bench_step.SIDES]
    text = bench_step.table({"runs": runs, "rows": 8, "rank": 8, "threads": 2})
    assert text.splitlines()[-1].split()[:9] == ["LoRA", "fp32", "1.00", "1.00", "1.00",
                                                 "(1.00-1.00)", "-", "-", "-"]


def test_a_process_that_ends_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_step, "SIDES", ("minipeft",))    # theirs would import transformers
    with pytest.raises(OSError, match=r"'minipeft', 'fp32', False\) failed:(.|\n)*"
                                      r"fp32.safetensors"):      # which is not in this folder
        bench_step.measure(str(tmp_path), "fp32", False, range(1))


def test_the_stored_runs_lost_the_same_and_decoded_the_same():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lora = next(row for row in bench_step.ratios(stored)
                if (row["method"], row["dtype"]) == ("LoRA", "fp32"))
    assert lora["largest_loss_difference"] < 1e-4        # float32, ten AdamW steps apart
    ours, theirs = (run["decoded"] for run in stored["runs"]
                    if (run["dtype"], run["four_bit"]) == ("fp32", False))
    assert ours == theirs and len(ours) == bench_step.NEW_TOKENS


def test_the_stored_dense_models_decoded_the_same_in_float32():
    stored = json.loads(STORED.with_name("decode.json").read_text(encoding="utf-8"))
    for case in stored["cases"]:
        if (case["method"], case["dtype"]) == ("dense", "fp32"):
            assert case["tokens"]["minipeft"] == case["tokens"]["HF PEFT"]
            assert len(case["tokens"]["minipeft"]) == stored["new_tokens"]


class Answers:
    """In place of a worker: a batch of 4 rows takes ours 1, 2, 4 and theirs 2, 8, 4 seconds a
    token, after a round that warms up."""

    def __init__(self, module, folder, side, method, dtype):
        assert (module, folder, method, dtype) == ("minipeft.lab.bench_decode", "f", "LoRA", "bf16")
        self.seconds = iter({"minipeft": [99, 1, 2, 4], "HF PEFT": [99, 2, 8, 4]}[side])

    def __enter__(self):
        return lambda question: (next(self.seconds), [7, 9]) if question == "4 2 24" else None

    def __exit__(self, *_):
        pass


def test_decoding_is_counted_in_tokens_of_all_rows_and_compared_turn_by_turn(monkeypatch):
    monkeypatch.setattr(bench_decode, "worker", Answers)
    (case,) = bench_decode.measure("f", "LoRA", "bf16", [(4, 2)], 3, 24)
    rates = {side: rate["median"] for side, rate in case["tokens_per_second"].items()}
    assert rates == {"minipeft": 4 / 2, "HF PEFT": 4 / 4}
    assert case["time_ratio"]["median"] == 0.5                  # of 1/2, 2/8, 4/4
    assert case["tokens"] == {"minipeft": [7, 9], "HF PEFT": [7, 9]}
    text = bench_decode.table({"new_tokens": 24, "prompt": 32, "cases": [case]})
    assert text.splitlines()[-1].split()[:7] == ["LoRA", "bf16", "4", "2", "2.0", "1.0", "0.50"]


def test_a_token_is_timed_when_it_is_made(monkeypatch):
    """Ours and theirs, from a tiny model: the moments do not fall, one a token; the same tokens."""
    transformers = pytest.importorskip("transformers")
    config = GPTConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2)
    model = GPT(config).eval()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**vars(config))).eval()
    theirs.load_state_dict(model.state_dict())
    theirs.generation_config.eos_token_id = None
    ids = torch.randint(50, (2, 5))
    (moments, tokens), (their_moments, their_tokens) = (
        bench_decode.our_decode(model, ids, 4), bench_decode.their_decode(theirs, ids, 4))
    assert tokens == their_tokens and len(tokens) == len(moments) == len(their_moments) == 4
    assert sorted(moments) == moments and sorted(their_moments) == their_moments
