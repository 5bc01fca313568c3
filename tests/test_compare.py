"""The comparison: what decides a run, what is kept, how claims are judged."""
import dataclasses
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from minipeft.__main__ import main
from minipeft.files import RESULTS
from minipeft.lab import compare, graded, rates, summary
from minipeft.lab.compare import at_full_size, code_hash, costs, forms, key, run_all, timed
from minipeft.lab.rates import LEARNING_RATES, SWEEP_SEEDS, choose
from minipeft.lab.runs import KEPT, STEPS, Job, run
from minipeft.lab.sources import sources
from minipeft.recipes import RECIPES, adapt
from minipeft.tiny_world.pretrain import load_base

QUICK = Job("lora", "elicit", 0, 1e-3, 2)
pytestmark = pytest.mark.usefixtures("few_documents")


@pytest.fixture(scope="module")
def record(few_documents):
    return run(QUICK)


def test_a_run_trains_scores_and_restores_the_base(record):
    assert len(record["history"]) == 2 and math.isfinite(record["loss"])
    assert record["restored"] is True and record["trainable"] == 4 * 8 * (4 * 256 + 3 * 512)
    assert set(KEPT) < record["forgetting"].keys() and record["share"] == record["exact_match"]


def test_full_fine_tuning_does_not_leave_the_base_as_it_was():
    assert run(Job("full", "elicit", 0, 1e-3, 2))["restored"] is False


def test_a_run_repeats_bitwise_and_differs_by_seed(record):
    assert run(QUICK) == record
    assert run(dataclasses.replace(QUICK, seed=1))["history"] != record["history"]


def test_a_diverged_run_is_recorded_as_such():
    record = run(dataclasses.replace(QUICK, arm="full", lr=1e30, steps=12))
    assert record["loss"] is None and record["exact_match"] == 0


def test_a_run_that_the_last_step_broke_has_diverged(monkeypatch):
    def broken(model, batches, config, steps):
        next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)
        return type("History", (), {"loss": [1.0, 1.0]})
    monkeypatch.setattr("minipeft.lab.runs.train", broken)
    record = run(QUICK)
    assert record["loss"] is None and "history" not in record
    json.dumps(record, allow_nan=False)


def test_the_key_of_a_run_depends_on_all_that_decides_it(monkeypatch):
    changes = dict(arm="qlora", task="novel", seed=1, lr=2e-3, steps=3, split="sweep")
    keys = {key(dataclasses.replace(QUICK, **{name: value})) for name, value in changes.items()}
    assert len(keys | {key(QUICK)}) == 7
    before = key(QUICK)
    monkeypatch.setitem(RECIPES, "lora", dataclasses.replace(RECIPES["lora"], four_bit=True))
    assert key(QUICK) != before
    monkeypatch.undo()
    monkeypatch.setattr(compare, "code_hash", lambda: code_hash() + "x")
    assert key(QUICK) != before


def test_a_run_depends_on_what_compare_imports_and_on_nothing_else():
    package = Path(compare.__file__).parents[1]
    found = {str(path.relative_to(package)) for path in sources(package / "lab" / "compare.py")}
    assert {"gpt.py", "lora.py", "train.py", "peft_model.py", "adapter_file.py", "nf4/cpu.py",
            "nf4/gpu.py", "tiny_world/grammar.py", "lab/compare.py"} <= found
    assert not {p for p in found if p.startswith(("cli", "llm", "course")) or "plot" in p}


def test_finished_runs_are_read_and_the_others_computed_in_worker_processes(forked, tmp_path,
                                                                            record):
    jobs = [QUICK, dataclasses.replace(QUICK, arm="prompt")]
    finished = dataclasses.asdict(QUICK) | record | {"marked": True}
    (tmp_path / f"{key(QUICK)}.json").write_text(json.dumps(finished))
    seen = []
    records = run_all(jobs, tmp_path, 2,
                      lambda results, **_: (seen.append(r) or r for r in results))
    assert records[0]["marked"] and records[1]["arm"] == "prompt" and len(seen) == 1
    assert not list(tmp_path.glob("*.part"))


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(forked, tmp_path, monkeypatch,
                                                                    capsys):
    arguments = ["compare", "--methods", "prompt", "--tasks", "elicit", "--quick", "--workers", "1",
                 "--out", str(tmp_path)]
    code = (f"import sys; from minipeft.__main__ import main; from minipeft.lab.runs import STEPS; "
            f"STEPS['elicit'] = 2; sys.exit(main({arguments}))")
    monkeypatch.setitem(STEPS, "elicit", 2)
    # a shell's background jobs ignore SIGINT, and so would what they start
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE,
                               preexec_fn=heed)
    deadline = time.time() + 120
    while not list(tmp_path.glob("runs/*.json")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)          # the first of two runs is finished
    _, err = process.communicate(timeout=60)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*.json")}
    assert process.returncode == 1 and len(kept) == 1
    assert "1 finished runs are kept" in err and "Traceback" not in err
    stored = json.loads((RESULTS / "compare" / "compare.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(compare, "costs", lambda methods, *_: {arm: stored["costs"][arm]
                                                               for arm in methods})
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    results = json.loads((tmp_path / "compare.json").read_text())
    assert [r["arm"] for r in results["runs"]] == ["full", "prompt"]
    assert "Prompt" in capsys.readouterr().out
    assert (tmp_path / "quality.png").stat().st_size > 5000


if os.name == "nt":     # no SIGINT to a child there
    del test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on


@pytest.mark.parametrize("scores, chosen", [
    # lr: (loss, exact match) of one seed, ...
    ({1e-3: [(0.5, 0.9)], 3e-3: [(0.1, 1.0)], 1e-2: [(0.01, 1.0)]}, 3e-3),      # solves, smallest
    ({1e-3: [(0.5, 1.0), (2, 0.9)], 3e-3: [(0.1, 1.0), (0.1, 1.0)]}, 3e-3),     # mean over seeds
    # none: the lower of the best neighbours, not the best itself, which stands at a cliff
    ({1e-3: [(1.0, 0.6)], 3e-3: [(0.7, 0.7)], 1e-2: [(0.2, 0.9)], 3e-2: [(2.6, 0.0)]}, 3e-3),
    ({1e-2: [(2.6, 0.0)], 1e-3: [(0.7, 0.7), (0.7, 0.7)], 3e-3: [(0.2, 0.9), (2.6, 0)]}, 1e-3),
    ({1e-3: [(2.6, 0.0)], 3e-3: [(2.5, 0.0)], 1e-2: [(None, 0.0)]}, 1e-3),      # diverged
    ({1e-3: [(math.nan, 0.0)], 3e-3: [(0.7, 0.7)], 1e-2: [(0.2, 0.9)]}, 3e-3),  # so did NaN,
    ({1e-3: [(0.7, 0.7)], 3e-3: [(0.2, 0.9)], 1e-2: [(math.nan, 0.0), (0.1, 0.9)]}, 1e-3),
    ({1e-3: [(2.6, 0.0)], 3e-3: [(2.5, 0.0)], 1e-2: [(-math.inf, 0.0)]}, 1e-3),  # and -inf
    ({1e-3: [(2.6, 0.0)]}, 1e-3),                                               # one rate
])
def test_the_choice_of_a_learning_rate(scores, chosen):
    runs = [dict(lr=lr, loss=loss, share=em) for lr, group in scores.items()
            for loss, em in group]
    assert choose(runs) == chosen


def test_every_arm_has_a_stored_swept_rate_and_the_choice_follows_from_the_stored_runs():
    sweep = json.loads(LEARNING_RATES.read_text())
    assert sweep["chosen"].keys() == STEPS.keys() and sweep["rule"] == rates.rule()
    for task, arm in itertools.product(STEPS, RECIPES):
        runs = [r for r in sweep["runs"] if (r["task"], r["arm"]) == (task, arm)]
        assert runs, f"no rates; make them: python -m minipeft compare --sweep --methods {arm}"
        assert sweep["chosen"][task][arm] == choose(runs)
        assert {r["split"] for r in runs} == {"sweep"}
        assert {r["lr"] for r in runs} == set(RECIPES[arm].grid)
        assert {r["seed"] for r in runs} == set(SWEEP_SEEDS)
        inside = RECIPES[arm].grid[1:-1]
        assert sweep["chosen"][task][arm] in inside, f"{arm}, {task}: at the edge of its grid"
    assert not set(SWEEP_SEEDS) & {*range(3), *graded.FAST_SEEDS, *graded.DOUBLED_SEEDS}


def test_full_size_counts_are_those_by_hand():
    N, L, C, F = 6_738_415_616, 32, 4096, 11008
    n_linear = L * (4 * C * C + 3 * C * F)
    lora = L * 8 * (4 * 2 * C + 3 * (C + F))
    full, adapter, four_bit = (at_full_size(arm) for arm in ("full", "lora", "qlora"))
    assert (full["trainable"], full["weights"]) == (N, 2 * N)
    assert full["gradients_and_optimizer"] == 14 * N
    assert adapter["trainable"] == four_bit["trainable"] == lora
    assert adapter["weights"] == 2 * N + 4 * lora
    blocks = n_linear // 64
    # codes, absmax, absmax2, mean
    nf4 = n_linear // 2 + blocks + 4 * (blocks // 256) + 7 * L * 4
    assert four_bit["weights"] == nf4 + 2 * (N - n_linear) + 4 * lora
    assert at_full_size("prompt")["trainable"] == 16 * C
    assert at_full_size("prefix")["trainable"] == 2 * L * 16 * C
    assert at_full_size("houlsby")["trainable"] == 2 * L * (2 * 16 * C + 16 + C)


def test_costs_are_complete_and_leave_the_thread_count_alone(forked):
    threads = torch.get_num_threads()
    found = costs(["full", "lora"], rounds=2)
    assert torch.get_num_threads() == threads
    assert found["full"]["trainable"] == found["full"]["parameters"] == 955_520
    assert set(found["lora"]["latency"]) == {
        f"{form}, {phase}, {rows}" for rows in (1, 32) for phase in ("prefill", "decode")
        for form in ("as trained", "merged")}
    assert set(found["full"]["latency"]) == {
        f"as trained, {phase}, {rows}" for rows in (1, 32) for phase in ("prefill", "decode")}
    assert found["full"]["latency"]["as trained, decode, 1"]["ratio"]["median"] == 1
    # a file holds the trained float32 numbers and a small header with their names
    for arm in found.values():
        assert 0 < arm["file_bytes"] - 4 * arm["trainable"] < 12_000


@pytest.mark.parametrize("arm", RECIPES)
def test_every_form_and_phase_that_is_timed_gives_the_logits_of_the_whole_text(arm):
    """Read at once without a cache by the model as trained. A merge rounds, QLoRA's most: into
    float32 weights here. atol: two orders above what float32 sums of this size differ by."""
    torch.manual_seed(0)
    model = adapt(load_base(0), arm).eval()
    ids = torch.randint(0, 400, (3, 17))
    with torch.no_grad():
        whole = model(ids)                                                        # (3, 17, V)
    found = {form: (timed("prefill", served, virtual, ids), timed("decode", served, virtual, ids))
             for _, form, served, virtual in forms(arm, model)}
    others = dict(lora="merged", qlora="merged", prompt="cached", prefix="cached")
    assert list(found) == ["as trained", *([others[arm]] if arm in others else [])], "see others"
    for prefill, decode in found.values():
        for _ in range(2):                       # a call finds its caches as the last one did
            assert torch.allclose(prefill(), whole[:, :-1], atol=1e-3)
            assert torch.allclose(decode(), whole[:, -1:], atol=1e-3)


def results_with(exact_match: dict[str, list[float]]) -> dict:
    runs = [dict(arm=arm, task="elicit", exact_match=em, share=em, restored=True,
                 forgetting=dict.fromkeys(KEPT, 0.0))
            for arm, scores in exact_match.items() for em in scores]
    timing = dict(seconds=dict(median=2.0, low=1.9, high=2.2),
                  ratio=dict(median=1.0, low=0.9, high=1.1))
    cost = dict(trainable=1, parameters=1, bytes=dict(weights=1, gradients=1, optimizer=2,
                activations=4), latency={f"{form}, {phase}, {rows}": timing
                                         for form in ("as trained", "merged") for rows in (1, 32)
                                         for phase in ("prefill", "decode")})
    return dict(runs=runs, methods=list(exact_match), tasks=["elicit"], steps=STEPS,
                costs=dict.fromkeys(exact_match, cost),
                full_size={arm: dict(trainable=1, parameters=1, preset="x") for arm in exact_match})


def test_performance_is_judged_against_full_fine_tuning_on_the_worst_task():
    results = results_with({"full": [0.9, 0.8], "lora": [0.84, 0.84], "prompt": [0.5, 0.5]})
    assert summary.measured(results, "lora")["performance"] == pytest.approx(-1)
    assert summary.measured(results, "prompt")["performance"] == pytest.approx(-35)
    assert summary.measured(results, "full")["performance"] == pytest.approx(0)
    assert summary.agrees("performance", "near-FFT", -1) and not summary.agrees(
        "performance", "near-FFT", -3)
    assert summary.agrees("performance", summary.NO_CLAIM, -3) is None
    assert "85±7" in summary.performance(results, "full")      # mean 0.85, sd 0.0707 by hand


def test_one_seed_has_no_deviation_and_none_is_printed():
    assert summary.performance(results_with({"full": [0.9]}), "full") == "90"
    assert summary.mean_sd([1.25], 2, "+") == "+1.25"
    assert summary.mean_sd([1.0, 1.5], 2, "+") == "+1.25±0.35"       # sd 0.5 / sqrt(2) by hand


def test_a_claim_that_does_not_hold_gets_a_sign_and_a_sentence():
    results = results_with({"full": [0.5], "prompt": [0.9], "prefix": [0.1]})
    text = "\n".join(summary.disagreements(results))
    assert "FFT, performance: claimed best, measured -40" in text
    assert "Prompt, updates: claimed < 0.1 %, measured 100" in text
    assert "Prefix" not in text
    table = summary.summary_table(results)
    assert table.count("no claim") == 4 and "≠" in table


def test_every_claim_in_words_has_a_rule():
    for claims in summary.CLAIMED.values():
        for column, claim in zip(summary.COLUMNS, claims):
            low, high = summary.RULES[column, claim]
            assert low <= high
    assert summary.agrees("performance", "lower", -100.2)     # a wrong belief is less than nothing


def test_the_grids_of_rates_are_fine_enough():
    """Neighbours at most 1.8 apart: from 1e-2 to 1.8e-2 LoRA goes from most bits of the languages
    to none (benchmarks/results/rates/sweep.jsonl)."""
    for recipe in RECIPES.values():
        ratios = [b / a for a, b in itertools.pairwise(recipe.grid)]
        assert all(1.5 < ratio <= 1.8 + 1e-9 for ratio in ratios), recipe.label


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"arm": "lora"}', b"[" * 9999])
def test_a_damaged_file_of_a_finished_run_is_done_again_with_a_word(content, tmp_path, monkeypatch):
    job = compare.Job("lora", "novel", 0, 1e-3, 3)
    done = dict(trainable=1, loss=0.5, exact_match=0.0, share=0.0,
                forgetting=dict.fromkeys(KEPT, 0.0))

    def in_processes(call, inputs, workers, progress):
        for one, path in inputs:
            compare.write_json(path, asdict(one) | done)
            yield None
    monkeypatch.setattr(compare, "in_processes", in_processes)
    path = tmp_path / f"{compare.key(job)}.json"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{path.name}.*the run is done again"):
        assert compare.run_all([job], tmp_path, 1, None) == [asdict(job) | done]
    with warnings.catch_warnings(action="error"):
        assert compare.run_all([job], tmp_path, 1, None) == [asdict(job) | done]
    for damage, message in (({"seed": 7}, "is of another run"), ({"loss": math.nan}, "not finite"),
                            ({"forgetting": {}}, "forgetting lacks story")):
        path.write_text(json.dumps(asdict(job) | done | damage))
        with pytest.warns(UserWarning, match=f"{message}.*; the run is done again"):
            assert compare.run_all([job], tmp_path, 1, None) == [asdict(job) | done]
    diverged = asdict(job) | dict(trainable=1, loss=None, exact_match=0.0, share=0.0)
    path.write_text(json.dumps(diverged))
    with warnings.catch_warnings(action="error"):
        assert compare.run_all([job], tmp_path, 1, None) == [diverged]


@pytest.mark.parametrize("content, message", [
    ("{}", "lacks chosen, runs"), ('{"chosen": [], "runs": []}', "chosen must be an object"),
    ('{"chosen": {"novel": {"lora": 0.1}}}', "lacks runs"),
    ('{"chosen": {"novel": 3}, "runs": []}', "chosen: novel must be an object, got 3"),
    ('{"chosen": {"novel": {"lora": "x"}}, "runs": []}', "novel: lora must be a number .* got 'x'"),
    ('{"chosen": {"novel": {"lora": null}}, "runs": []}', "novel: lora must be a number .* None"),
    ('{"chosen": {"novel": {"lora": 0.1}}, "runs": {}}', "runs must be a list"),
    ('{"chosen": {"novel": {"lora": 0.1}}, "runs": [3]}', "run 1 must be an object, got 3"),
    ('{"chosen": {"novel": {"lora": 0.1}}, "runs": [{}]}', "run 1 lacks arm, task"),
    ('{"chosen": {"novel": {"lora": NaN}}}', "NaN is not finite"), ("[" * 9999, "nested deeper")])
def test_a_damaged_table_of_rates_is_refused_by_its_name(content, message, tmp_path, monkeypatch):
    path = tmp_path / "learning_rates.json"
    path.write_text(content)
    monkeypatch.setattr(rates, "LEARNING_RATES", path)
    for reader in (rates.stored_means, functools.partial(rates.learning_rate, "lora", "novel")):
        with pytest.raises(ValueError, match=f"learning_rates.json.*{message}"):
            reader()
