"""The planner against counts on real models, and against published figures."""
import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL
from torch.utils.checkpoint import checkpoint

from minipeft import GPT, GPTConfig
from minipeft.__main__ import main
from minipeft.llm import hf_config
from minipeft.gpt import RopeScaling
from minipeft.lab.memory import Run, advice, plan
from minipeft.measure import nbytes, training_bytes
from minipeft.recipes import RECIPES, adapt

WIDE = replace(SMALL, hidden_size=64, head_dim=None, intermediate_size=192,
               vocab_size=59)                                                 # grouped-query heads


def real_model(run: Run):
    return adapt(GPT(run.config), run.method, run.r)


def saved_for_backward(model, ids) -> int:
    held = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        logits = model(ids)
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    return nbytes(t for t in saved if t.untyped_storage()._cdata not in held)


@pytest.mark.parametrize("config", [
    WIDE, replace(WIDE, num_key_value_heads=4), replace(WIDE, tie_word_embeddings=True),
    replace(WIDE, biases=("q_proj", "k_proj", "v_proj"), rope_scaling=RopeScaling("linear", 2.0)),
    replace(WIDE, qk_norm=True, head_dim=2 * WIDE.head_dim),
    *(replace(WIDE, vocab_size=V) for V in (64, 192, 32, 16, 11, 20))],
    ids=["grouped", "all heads", "tied", "Qwen2's", "Qwen3's", "V = C",
         "V = inner width", "V = keys' width", "V = D", "V = T", "V = B (T - 1)"])
@pytest.mark.parametrize("method", RECIPES)
def test_the_plan_equals_what_a_real_step_allocates(method, config):
    run = Run(replace(config, num_hidden_layers=3), method, 4, 2, 11, "fp32")
    model, ids = real_model(run), torch.zeros(2, 11, dtype=torch.long)
    planned, found = plan(run), training_bytes(model, (ids, ids))
    assert planned["activations"] + planned["logits"] == saved_for_backward(model, ids)
    assert planned["logits"] == 4 * 2 * 10 * config.vocab_size      # of all but the last token
    weights = planned["weights"] + planned["quantization constants"] + planned["adapter"]
    assert (weights, planned["gradients"], planned["optimizer"]) == (
        found.weights, found.gradients, found.optimizer)


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layer_at_a_time(monkeypatch):
    run = Run(replace(WIDE, num_hidden_layers=5), "full", 4, 2, 11, "fp32")
    whole, kept = plan(run), plan(replace(run, checkpointing=True))
    layer = whole["activations"] - plan(replace(run, config=replace(
        WIDE, num_hidden_layers=4)))["activations"]
    model, ids = real_model(run), torch.zeros(2, 11, dtype=torch.long)
    from minipeft.gpt import DecoderLayer
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda self, x, cache=None: checkpoint(
        forward, self, x, cache, use_reentrant=False))
    table = 2 * 64 * 16 * 4                # cos and sin, that the recomputed layer reads
    found = saved_for_backward(model, ids) + layer + table
    assert kept["activations"] + kept["logits"] == found


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
@pytest.mark.parametrize("method", RECIPES)
def test_a_plan_from_two_and_three_layers_holds_for_every_number(layers, method):
    run = Run(replace(WIDE, num_hidden_layers=layers), method, 4, 2, 11, "fp32")
    model, ids = real_model(run), torch.zeros(2, 11, dtype=torch.long)
    planned, found = plan(run), training_bytes(model, (ids, ids))
    assert planned["activations"] + planned["logits"] == saved_for_backward(model, ids)
    assert planned["weights"] + planned["quantization constants"] + planned["adapter"] == (
        found.weights)
    assert (planned["gradients"], planned["optimizer"]) == (found.gradients, found.optimizer)


def test_llama_2_7b_by_hand():
    N = 6_738_415_616
    parts = plan(Run(GPTConfig.preset("llama-2-7b"), "full"))
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (2 * N, 2 * N, 12 * N)
    lora = plan(Run(GPTConfig.preset("llama-2-7b"), "lora", r=16))
    assert lora["adapter"] == lora["gradients"] == 4 * 39_976_960
    assert lora["optimizer"] == 8 * 39_976_960
    run = Run(GPTConfig.preset("llama-2-7b"), "lora", r=16, optimizer="sgd")
    assert plan(run)["optimizer"] == 0


def test_65b_in_four_bits_fits_48_gib_and_not_48e9_bytes():
    run = Run(GPTConfig.preset("llama-65b"), "qlora", 64, 1, 512, "bf16", "adamw", True)
    total = sum(plan(run).values())
    assert 48e9 < total < 47 * 2**30       # the paper's figure is 45.0 GB, with bf16 adapters


def test_advice_says_what_each_change_would_take():
    run = Run(GPTConfig.preset("llama-2-7b"), "lora", r=16)
    lines = advice(run, 15 * 2**30)
    total = sum(plan(replace(run, checkpointing=True)).values()) / 2**30
    assert lines[0] == f"gradient checkpointing: {total:.2f} GiB, fits"


@pytest.mark.parametrize("bad, message", [
    (dict(method="nosuch"), "method must be one of full, lora"),
    (dict(dtype="int8"), "dtype must be one of fp32"),
    (dict(optimizer="adam"), "optimizer must be"),
    (dict(r=0), "r must be at least 1, got 0"), (dict(batch=-1), "batch must be at least 1"),
    (dict(seq=65), "at most the model's 64 positions, got 65"),
    (dict(method="prompt", r=10, seq=60), "got 70"),
])
def test_impossible_runs_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Run(SMALL, **{"seq": 32, **bad})


@pytest.mark.parametrize("argv, message", [
    (["--model", "llama-2-8b"], "llama-2-7b, "),
    (["--model", "none.json"], "no file none.json"),
    (["--model", "tiny", "--r", "500", "--seq", "64", "--method", "lora"], "r must be at most 128"),
    (["--model", "tiny", "--seq", "-3"], "seq must be at least 1"),
    (["--model", "tiny", "--seq", "64", "--gpu", "0"], "--gpu must be a positive"),
    (["--model", "tiny", "--gpu", "nan"], "--gpu must be a positive"),
    (["--model", "tiny", "--gpu", "1e400"], "--gpu must be a positive"),
    (["--model", "tiny", "--batch", "0"], "batch must be at least 1, got 0"),
    (["--model", "tiny", "--seq", "0"], "seq must be at least 1, got 0"),
    (["--model", "tiny", "--r", "0"], "r must be at least 1, got 0"),
    (["--model", "tiny", "--r", "8", "--method", "full"],
     "full fine-tuning has no r, got --r 8; leave it out"),
    (["--model", "tiny", "--batch", "1" + "0" * 12], "batch must be at most 2147483648"),
    (["--model", "tiny", "--batch", "1" + "0" * 19], "batch must be at most 2147483648"),
    (["--model", "llama-3-8b", "--batch", "1000000", "--seq", "8192"], "x seq must be at most 21"),
    (["--model", "tiny", "--r", "1" + "0" * 19, "--method", "houlsby"], "r must be at most 2147"),
    (["--model", "tiny", "--method", "prompt", "--r", "300"], "model's 256 positions, got 301"),
])
def test_wrong_usage_is_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["memory", *argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_huggingface_config_file_is_a_model(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**vars(GPTConfig.preset("llama-2-7b")),
                                "architectures": ["LlamaForCausalLM"]}))
    for model in (str(path), "llama-2-7b"):
        assert main(["memory", "--model", model, "--method", "qlora", "--gpu", "16",
                     "--out", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.split("written:")[:2]
    assert first.splitlines()[:9] == second.splitlines()[1:10] and "fits into 16 GiB" in first
    assert (tmp_path / "memory.png").stat().st_size > 5000
    path.write_text(json.dumps({"vocab_size": 10}))
    with pytest.raises(SystemExit):
        main(["memory", "--model", str(path)])
    assert "lacks hidden_size, intermediate_size" in capsys.readouterr().err


def test_the_sequence_is_512_tokens_or_what_the_model_has_positions_for(capsys):
    for argv, seq in (["--model", "tiny"], 256), (["--model", "tiny", "--method", "prompt"], 236), (
            ["--model", "llama-2-7b", "--method", "prefix", "--r", "30"], 512):
        assert main(["memory", *argv]) == 0
        assert main(["memory", *argv, "--seq", str(seq)]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[:len(out) // 2] == out[len(out) // 2:]
    for argv in (["--gpu", "1e308"], ["--gpu", "1e-300"], ["--method", "full"],
                 ["--batch", "8000000"]):
        assert main(["memory", "--model", "tiny", *argv]) == 0


# A config.json says what GPT computes, or is refused by the name of the field

LLAMA = {**vars(GPTConfig.preset("llama-3-8b")), "model_type": "llama", "hidden_act": "silu",
         "architectures": ["LlamaForCausalLM"], "head_dim": 128, "attention_bias": False,
         "mlp_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1, "dtype": "bfloat16",
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
         "use_cache": True,
         "bos_token_id": 128000, "eos_token_id": [128001, 128009], "initializer_range": 0.02}
MISTRAL = {**vars(GPTConfig.preset("llama-3-8b")), "model_type": "mistral",
           "architectures": ["MistralForCausalLM"], "sliding_window": 4096}
REFUSED = {
    **{f"{key} {value}": (LLAMA | {key: value}, f"{key} must be a whole number, 1 to") for key in
       [*list(LLAMA)[:5], "max_position_embeddings"] for value in (0, -8, 2.5, "4096", None, True,
                                                                   2**25, 10**18, [1])},
    **{f"kv heads {value}": (LLAMA | {"num_key_value_heads": value}, "num_key_value_heads must")
       for value in (0, -8, 5, 64, "8", False)},
    **{f"{key} {value}": (LLAMA | {key: value}, f"{key} must be a positive, finite number")
       for key in ("rope_theta", "rms_norm_eps") for value in (0, 0.0, -1.0, None, "1", True)},
    **{f"tied {value}": (LLAMA | {"tie_word_embeddings": value}, "tie_word_embeddings must be True")
       for value in (None, 0, 1, "false")},
    **{f"missing {key}": ({k: v for k, v in LLAMA.items() if k != key}, f"lacks {key}; a Llama")
       for key in list(LLAMA)[:5]},
    **{f"head_dim {value}": (LLAMA | {"head_dim": value}, f"head_dim must be .* got {value!r}")
       for value in (127, 0, "128", 2.0, True)},
    "odd head": (LLAMA | {"hidden_size": 4095, "head_dim": None},
                 "hidden_size must be an even multiple of num_att"),
    **{f"{key} {value}": (LLAMA | {key: value}, f"{key} must be .*, got {value!r}")
       for key, value in {
           "attention_bias": "yes", "mlp_bias": True, "attention_dropout": 0.1,
           "hidden_act": "gelu", "num_local_experts": 8, "num_experts": 128, "n_routed_experts": 64,
           "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 1408,
           "kv_lora_rank": 512, "partial_rotary_factor": 0.5, "quantization_config": {"bits": 4},
           "is_encoder_decoder": True, "text_config": {"hidden_size": 3},
           "qk_layernorm": True}.items()},
    **{f"type {kind}": (LLAMA | {"model_type": kind}, "model_type must be llama or mistral or qwe")
       for kind in ("gemma", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3",
                    "gpt_neox", "bert", "phi3", "t5", "", 5, ["llama"], {})},
    **{f"class {kind}": (LLAMA | {"architectures": kind}, "architectures must be LlamaForCausalLM")
       for kind in ("LlamaForCausalLM", ["MixtralForCausalLM"], ["LlamaForSequenceClassification"],
                    [], ["LlamaForCausalLM", "x"], [["LlamaForCausalLM"]], {"a": 1}, 7)},
    "no type, another class": ({k: v for k, v in LLAMA.items() if k != "model_type"} | {
        "architectures": ["Qwen2MoeForCausalLM"]}, "architectures must be LlamaForCausalLM or Mi"),
    "half the layers": (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]},
                        "layer_types must all be 'full_attention'"),
    "layers as text": (LLAMA | {"layer_types": "full_attention"}, "layer_types must all be"),
    "window 0": (MISTRAL | {"sliding_window": 0}, "sliding_window must be a whole number of at l"),
    "window as text": (MISTRAL | {"sliding_window": "4096"}, "sliding_window must be a whole numb"),
}


def refusal(path, capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["memory", "--model", str(path), *argv])
    assert stop.value.code == 2
    usage, _, line = capsys.readouterr().err.partition("minipeft memory: error: ")
    assert usage.startswith("usage: ") and line.count("\n") == 1
    return line


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_gpt_does_not_compute_is_refused_by_the_field(case, tmp_path, capsys):
    entries, message = REFUSED[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(entries))
    assert re.search(f"config.json:? {message}", refusal(path, capsys))


@pytest.mark.parametrize("content, message", [
    (b"", "it is empty"), (b"[]", "must hold an object, got list"), (b"5", "got int"),
    (b"null", "got NoneType"), (b"[" * 100_000, "nested deeper than 64"),
    (b'{"a": 1, "a": 2}', "the key a stands twice"), (b'{"vocab_size": 1e999}', "is not finite"),
    (b'{"vocab_size": 1' + b"0" * 5000 + b"}", "is larger than"), (b"\xff", "must be UTF-8")])
def test_a_config_that_is_no_json_is_refused_by_its_name(content, message, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(content)
    assert re.search(f"config.json .*{message}", refusal(tmp_path, capsys))


def test_a_folder_or_a_file_with_a_byte_order_mark_is_the_preset(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8-sig")
    for model in (tmp_path, "llama-3-8b"):
        assert main(["memory", "--model", str(model)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:len(out) // 2] == out[len(out) // 2:]


def test_a_window_counts_where_a_sequence_is_longer_than_it(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MISTRAL))
    assert main(["memory", "--model", str(path), "--seq", "4096"]) == 0
    assert "its sliding_window ends after 4096 tokens" in refusal(path, capsys, "--seq", "4097")
    assert "a sequence has 4106" in refusal(path, capsys, "--seq", "4096", "--method", "prompt",
                                            "--r", "10")
    qwen = MISTRAL | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    for entries in (MISTRAL | {"sliding_window": None}, qwen):
        path.write_text(json.dumps(entries))
        assert main(["memory", "--model", str(path), "--seq", "8192"]) == 0
    for entries in ({k: v for k, v in MISTRAL.items() if k != "sliding_window"},
                    MISTRAL | {"use_sliding_window": False},        # which Mistral does not read
                    qwen | {"use_sliding_window": True}):
        path.write_text(json.dumps(entries))
        assert "its sliding_window ends after 4096" in refusal(path, capsys, "--seq", "4097")


@pytest.mark.parametrize("kind", hf_config.CLASSES)
def test_what_a_file_leaves_out_is_what_its_class_takes(kind, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(kind)
    path = tmp_path / "config.json"
    sizes = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=2,
                 num_attention_heads=32)
    path.write_text(json.dumps({"model_type": kind, **sizes}))
    model = hf_config.read(path)
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
                 "tie_word_embeddings"):
        found = "kv_heads" if name == "num_key_value_heads" else name
        assert getattr(model.config, found) == getattr(theirs, name), name
    assert model.config.head_dim == getattr(theirs, "head_dim", 128)        # Qwen2's: 4096 / 32
    assert model.window == getattr(theirs, "sliding_window", None)
    assert main(["memory", "--model", str(path)]) == 0
    assert "does not say tie_word_embeddings: the head is not tied" in capsys.readouterr().out
    path.write_text(json.dumps({"model_type": kind, **sizes, "tie_word_embeddings": True}))
    assert hf_config.read(path).config.tie_word_embeddings and not hf_config.read(path).note


# Published peaks. The planner counts what is alive at the end of the forward pass, with LoRA on all
# linears, float32 adapters and unfused float32 logits; each project differs in some of these.


@pytest.mark.parametrize("size, published, difference", [
    ("7b", 6.9, -0.03), ("13b", 11.3, 0.03), ("33b", 24.7, 0.05), ("65b", 45.0, 0.07)])
def test_qlora_papers_bars_are_met_within_a_fourteenth(size, published, difference):
    """Dettmers et al. 2023, the figure of memory by model size: GB; r = 64, 1 x 512 tokens,
    checkpointing. The surplus grows with the adapter: the paper's trains in 16 bits, 6 bytes a
    number less than ours; at 7B that is outweighed by bytes of the paper's that we do not count."""
    run = Run(GPTConfig.preset(f"llama-{size}"), "qlora", 64, 1, 512, checkpointing=True)
    parts = plan(run)
    total = sum(parts.values()) / 1e9
    assert total / published - 1 == pytest.approx(difference, abs=0.005)     # as stated above
    sixteen_bit = total - 6 * parts["adapter"] / 4 / 1e9
    assert sixteen_bit < published          # with such adapters the plan is below every bar


@pytest.mark.parametrize("method, published, difference", [("lora", 21.30, -0.01),
                                                           ("qlora", 13.84, -0.17)])
def test_litgpts_peak_is_met_for_lora_and_not_for_qlora(method, published, difference):
    """litgpt's table of a 40 GB A100: Llama-2-7B, r = 8, batch 1, at most 1304 tokens; GB. It
    adapts q and v only and does not state checkpointing, so that LoRA's agreement may be chance;
    with checkpointing our plan is a third to two thirds below."""
    run = Run(GPTConfig.preset("llama-2-7b"), method, 8, 1, 1304)
    whole, checkpointed = (sum(plan(replace(run, checkpointing=c)).values()) / 1e9
                           for c in (False, True))
    assert whole / published - 1 == pytest.approx(difference, abs=0.005)
    assert 0.34 < checkpointed / published < 0.70


def test_litgpts_saving_by_four_bits_is_four_fifths_of_the_plans():
    """21.30 - 13.84 = 7.46 GB against 9.61 GB: a peak also holds a weight that is just restored,
    and more of their model stays in 16 bits; how much of each is not published."""
    saved = [sum(plan(Run(GPTConfig.preset("llama-2-7b"), method, 8, 1, 1304)).values())
             for method in ("lora", "qlora")]
    assert (saved[0] - saved[1]) / 1e9 == pytest.approx(9.61, abs=0.005)
    assert (21.30 - 13.84) / 9.61 == pytest.approx(0.78, abs=0.005)


@pytest.mark.parametrize("method, published, difference", [("lora", 16.2, 0.05),
                                                           ("qlora", 7.4, -0.01)])
def test_torchtunes_peaks_are_met_without_the_logits(method, published, difference):
    """torchtune's table, RTX 4090: Llama-3.1-8B, 2 x 2048 tokens; GiB. Its compiled, chunked loss
    never holds the logits of all positions, 1.96 GiB in ours; the rank is not stated, 8 here."""
    run = Run(GPTConfig.preset("llama-3-8b"), method, 8, 2, 2048, checkpointing=True)
    parts = plan(run)
    total = sum(parts.values()) - parts["logits"]
    assert parts["logits"] / 2**30 == pytest.approx(1.96, abs=0.005)
    assert total / 2**30 / published - 1 == pytest.approx(difference, abs=0.005)
