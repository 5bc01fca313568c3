"""The evidence script in its smoke mode; on a GPU it runs the same lines at full size."""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minipeft import GPT
from minipeft.lab.memory import plan
from minipeft.nf4 import NF4Linear

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))        # where Python looks when a script there is run

pytest.importorskip("tokenizers", reason="tokenizers is the optional extra minipeft[llm]")
import gpu_evidence
import results_page
from gpu import fits, kernels, latency, quality, shapes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The folder that a smoke run of every part has written."""
    out = tmp_path_factory.mktemp("evidence")
    assert gpu_evidence.main(["--smoke", "--out", str(out)]) == 0
    return out / "smoke"


def stored(folder: Path, part: str) -> dict:
    return json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", gpu_evidence.PARTS)
def test_the_smoke_run_stores_every_case_of_a_part_marked_as_smoke(smoke, part):
    results = stored(smoke, part)
    assert results["smoke"] is True
    assert list(results["cases"]) == list(gpu_evidence.PARTS[part].SMOKE)
    assert (smoke / f"{part}.png").stat().st_size > 5000
    assert [path.name for path in smoke.glob("*.part")] == []


def test_the_smoke_runs_steps_train(smoke):
    for name, found in stored(smoke, "fits")["cases"].items():
        assert found["fits"] and found["losses"][-1] < found["losses"][0], name
        assert len(found["losses"]) == 1 + fits.SMOKE[name].steps


def test_a_second_call_measures_nothing_anew(smoke, monkeypatch):
    def measure(*arguments):
        raise AssertionError("measured again")
    before = {part: (smoke / f"{part}.json").read_bytes() for part in gpu_evidence.PARTS}
    for part in gpu_evidence.PARTS.values():
        monkeypatch.setattr(part, "measure", measure)
    assert gpu_evidence.main(["--smoke", "--out", str(smoke.parent)]) == 0
    assert before == {part: (smoke / f"{part}.json").read_bytes() for part in gpu_evidence.PARTS}


def test_a_case_that_is_missing_or_has_changed_is_measured_and_no_other(smoke, monkeypatch, capsys):
    results, asked = stored(smoke, "fits"), []
    del results["cases"]["tiny lora"]
    folder = smoke.parent / "interrupted" / "smoke"
    folder.mkdir(parents=True)
    (folder / "fits.json").write_text(json.dumps(results), encoding="utf-8")
    changed = replace(fits.SMOKE["tiny full"], steps=2)
    monkeypatch.setitem(fits.SMOKE, "tiny full", changed)
    monkeypatch.setattr(fits, "measure", lambda case, *rest: asked.append(case) or {
        "planned": {}, "fits": False, "reason": "a stand-in"})
    monkeypatch.setattr(gpu_evidence, "draw", lambda *arguments: "no picture")
    gpu_evidence.main(["--smoke", "--part", "fits", "--out", str(folder.parent)])
    assert asked == [fits.SMOKE["tiny lora"], changed]
    assert "did not fit: a stand-in" in capsys.readouterr().out


@pytest.mark.parametrize("part", gpu_evidence.PARTS)
def test_the_results_page_ignores_smoke_runs(smoke, part, tmp_path):
    assert results_page.measured_on_gpus(part, smoke.parent) == {}
    real = stored(smoke, part) | {"smoke": False}      # the same file is taken without the mark
    (tmp_path / "a-gpu").mkdir()
    (tmp_path / "a-gpu" / f"{part}.json").write_text(json.dumps(real), encoding="utf-8")
    assert list(results_page.measured_on_gpus(part, tmp_path).values()) == [real]


def test_without_cuda_the_script_says_in_one_line_what_it_wants(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_evidence.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "wants a CUDA GPU" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_case_gets_a_process_of_its_own(tmp_path):
    assert gpu_evidence.fresh(os.getpid) != os.getpid()


def test_running_out_of_memory_is_a_result(monkeypatch, tmp_path):
    def train_steps(case, where):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")
    monkeypatch.setattr(fits, "train_steps", train_steps)
    found = fits.measure(fits.SMOKE["tiny lora"], CPU, tmp_path)
    assert (found["fits"], found["reason"]) == (
        False, "CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("cap, card, fraction", [(48, 80, 0.6), (None, 80, 1.0), (48, 24, 1.0)])
def test_the_cap_is_a_share_of_the_card(monkeypatch, cap, card, fraction):
    """By hand: 48 of 80 GiB are 0.6; a card that is smaller than the cap is a cap itself."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda number: SimpleNamespace(total_memory=card * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    assert fits.set_cap(cap)["cap_bytes"] == min(cap or card, card) * 2**30
    assert asked == [pytest.approx(fraction, rel=1e-12)]        # one division


# Models made one layer at a time


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", fits.SMOKE)
def test_a_model_made_layer_by_layer_has_the_bytes_of_the_plan(name, tied):
    run = fits.SMOKE[name].run
    run = replace(run, config=replace(run.config, tie_word_embeddings=tied))
    model, planned = fits.adapted(run, CPU), plan(run)
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    assert not any(t.is_meta for t in tensors.values())
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == (
        planned["weights"] + planned["quantization constants"] + planned["adapter"])


def test_the_bytes_of_a_four_bit_model_by_hand():
    """Width 64, 4 heads of which 2 have keys, MLP 192, 3 layers, 61 words; n weights take n / 2
    bytes of codes, n / 64 of absmax, 4 for each 256 of these, 4 for the offset; the rest 2 each."""
    linears = 3 * [64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 192, 64 * 192, 192 * 64]
    four_bit = sum(n // 2 + n // 64 + 4 * -(-n // 64 // 256) + 4 for n in linears)
    rest = 2 * (2 * 61 * 64 + 7 * 64)
    model = shapes.random_gpt(fits.TINY, torch.bfloat16, CPU, four_bit=True)
    assert sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) == four_bit + rest


def test_a_layer_is_quantized_before_the_next_one_is_made(monkeypatch):
    events, make, quantize = [], shapes.materialise, shapes.quantize_model
    monkeypatch.setattr(shapes, "materialise",
                        lambda module, where: events.append("made") or make(module, where))
    monkeypatch.setattr(shapes, "quantize_model", lambda module, **options: events.append(
        "quantized") or quantize(module, **options))
    shapes.random_gpt(fits.TINY, torch.bfloat16, CPU, four_bit=True)
    assert events == ["made", *3 * ["made", "quantized"], "made", "made"]


def test_the_weights_are_drawn_at_one_over_the_root_of_the_width():
    model = shapes.random_gpt(latency.TINY, torch.float32, CPU)
    std = model.model.layers[0].mlp.down_proj.weight.std().item()
    assert std == pytest.approx(192 ** -0.5, rel=0.05)      # 12288 draws: 0.6 % is one deviation
    assert (model.model.norm.weight == 1).all()


def test_a_four_bit_layer_copies_its_code_to_a_device_once():
    """The meta device stands for a GPU here: both make a new tensor of every copy."""
    layer = NF4Linear(64, 64, device="meta")
    first, second = layer.quant_state, layer.quant_state
    assert first.code is second.code and first.state2.code is second.state2.code


# What is published


def test_the_page_shows_what_is_planned_and_what_was_not_measured():
    text = fits.markdown({})
    rows = dict(zip(fits.CASES, text.splitlines()[2:], strict=True))
    assert all(row.startswith(f"| {name} |") for name, row in rows.items())
    assert all(row.endswith("| not measured |") for row in rows.values())
    for name in ("llama-2-7b QLoRA r=16", "llama-2-7b LoRA r=16", "llama-2-7b full"):
        planned = sum(plan(fits.CASES[name].run).values())
        assert f"| {planned / 2**30:.2f} GiB" in rows[name]


def test_the_page_shows_a_measured_peak_with_its_distance_from_the_plan():
    name = fits.HEADLINES[0]
    found = {"fits": True, "planned": {"weights": 40 * 2**30}, "peak_allocated": 41 * 2**30,
             "cap_bytes": 48 * 2**30, "seconds_per_step": {"median": 1.5}}
    text = fits.markdown({"A GPU": {"cases": {name: found}}}, (name,))
    assert text.endswith("| **41.00 GiB** (+2.5%), fits, 1.50 s a step |")      # 41 / 40
    text = fits.markdown({"A GPU": {"cases": {name: found | {"fits": False}}}}, (name,))
    assert text.endswith("| did not fit 48.00 GiB |")


@pytest.mark.parametrize("shape, percent", [((32, 512), "+3.0 %"), ((16, 256), "+8.4 %"),
                                            ((1, 128), "+30.3 %")])
def test_the_papers_overheads_are_those_it_prints(shape, percent):
    """Hu et al. 2021, Table 1, prints the milliseconds and the percentages."""
    found = {"settings": dict(zip(("batch", "tokens"), shape))}
    assert latency.published(found, "Houlsby") == percent
    assert latency.published(found, "LoRA merged") == "+0.0 %"
    assert latency.published(found, "Prefix") == "-"


def test_the_medium_model_has_the_size_of_gpt_2_medium():
    """GPT-2 medium: 354,823,168 parameters; ours has no positions, biases or second norm."""
    with torch.device("meta"):
        n = sum(p.numel() for p in GPT(latency.MEDIUM).parameters())
    assert n == pytest.approx(354_823_168, rel=0.01)


def test_the_bytes_that_a_kernel_moves_by_hand():
    """8192 weights: 4096 bytes of codes, 128 blocks of a float32 or a byte, and float32 weights."""
    plain = kernels.bytes_moved("dequantize", torch.float32, 8192)
    nested = kernels.bytes_moved("quantize + double quantization", torch.bfloat16, 8192)
    assert plain == {"minipeft": 4096 + 4 * 128 + 4 * 8192, "copy": 2 * 4 * 8192}
    assert nested == {"minipeft": 4096 + 128 + 2 * 8192, "copy": 2 * 2 * 8192}


def test_five_seeds_on_three_bases_are_called_that():
    results = {"smoke": False, "cases": {"tiny world": {
        "settings": {"seeds": 5}, "bases": 3, "rates": {"novel, lora": [1e-3, 3e-3]},
        "learned": {"novel, lora": [1.0, 0.0, 0.5, 0.5, 0.5]}}}}
    text = quality.table(results)
    assert text.startswith("3 pretrained bases, 5 seeds")
    assert "novel, lora 50.0 35.4 100 0 50 50 50" in " ".join(text.split())  # sd: sqrt(0.5 / 4)
    assert "this sweep chose 0.001, the shipped one 0.003" in text
