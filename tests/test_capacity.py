"""The capacity study: what it runs, when an arm is full, what the tables and the picture say."""
import dataclasses
import json
import math

import pytest
from runs_here import RunsHere

from minipeft.__main__ import main
from minipeft.files import RESULTS
from minipeft.lab import capacity, plot, summary
from minipeft.lab.capacity import ARMS, CapacityJob, crossing, doublings, ends, flat, knee
from minipeft.peft_model import count_parameters
from minipeft.recipes import RECIPES
from minipeft.tiny_world.languages import Languages
from minipeft.tiny_world.pretrain import load_base

BITS = 48 * math.log2(48)      # of one language: 48 words, each one of 48


def curve(arm: str, K: int, shares: dict[int, float], seed: int = 0, split: str = "report",
          lr: float = 1e-3, trained: int = 1000) -> list[dict]:
    return [dataclasses.asdict(CapacityJob(arm, K, seed, lr, steps, split)) | dict(
        trainable=trained, loss=1 - share, share=share, bits=share * K * BITS)
        for steps, share in shares.items()]


def test_an_arm_trains_what_its_name_says():
    """Counted by hand: 4 layers of width 128 and 384; a rank of LoRA is in + out per matrix."""
    q_and_v, all_linears = 4 * 2 * 256, 4 * (4 * 256 + 3 * 512)
    wanted = {"lora-1-qv": q_and_v, "lora-8-qv": 8 * q_and_v, "full": 955_520,
              "prefix-16": 4 * 2 * 16 * 128, "prompt-16": 16 * 128,
              "houlsby-7": 8 * (2 * 7 * 128 + 7 + 128), "houlsby-39": 8 * (2 * 39 * 128 + 39 + 128)}
    wanted |= {f"lora-{r}": r * all_linears for r in (1, 2, 4, 8, 32)}
    assert wanted.keys() == ARMS.keys()
    assert {name: count_parameters(arm.adapt(load_base(0)))[0]
            for name, arm in ARMS.items()} == wanted


@pytest.mark.parametrize("name", [name for name in ARMS if name.startswith("lora")])
def test_every_lora_has_the_scale_2(name):
    adapters = ARMS[name].adapt(load_base(0)).adapter_sets["default"].values()
    assert {adapter.scaling for adapter in adapters} == {2.0}


def test_the_steps_are_doubled_to_the_most_and_each_pair_is_met_about_33_times_at_first():
    assert doublings(2, 200) == [25, 50, 100, 200] and doublings(128)[0] == 1600
    for K in capacity.OFFERED:
        # a step has 32 examples of 4 words, drawn from K languages of 48 words
        assert doublings(K)[0] * 32 * 4 / (48 * K) == pytest.approx(100 / 3)
        assert capacity.MOST_STEPS / 2 < doublings(K)[-1] <= capacity.MOST_STEPS


def test_a_curve_is_flat_when_it_has_begun_and_gains_less_than_a_point():
    runs = curve("lora-1", 8, {100: 0.0, 200: 0.004, 400: 0.4, 800: 0.409, 1600: 0.42})
    assert [flat(runs, "lora-1", 8, 0, steps) for steps in (100, 200, 400, 800, 1600)] == [
        False, False, False, True, False]
    assert not flat(runs, "lora-1", 32, 0, 800) and not flat(runs, "lora-1", 8, 1, 800)


def test_an_arm_is_full_where_it_is_flat_below_all_and_its_capacity_is_the_most_of_its_bits():
    runs = [*curve("lora-1", 2, {25: 0.99, 50: 0.995}),                      # holds all
            *curve("lora-1", 8, {800: 0.6, 1600: 0.605}),                    # full
            *curve("lora-1", 32, {3200: 0.2, 6400: 0.205}),                  # full, and holds more
            *curve("lora-1", 64, {3200: 0.1, 6400: 0.3}),                    # still rising
            *curve("lora-1", 8, {800: 0.5, 1600: 0.505}, seed=1),
            *curve("lora-1", 8, {800: 0.9, 1600: 0.9}, seed=100, split="sweep")]
    assert capacity.capacity(runs, "lora-1") == pytest.approx(
        [0.205 * 32 * BITS / 1000, 0.505 * 8 * BITS / 1000])
    assert capacity.capacity(runs, "full") == []
    assert capacity.capacity(curve("lora-1", 2, {25: 0.99, 50: 0.995}), "lora-1") == []  # not full
    assert [(e["share"], e["steps"], e["flat"]) for e in ends(runs, "lora-1", 8)] == [
        (0.605, 1600, True), (0.505, 1600, True)]
    assert [knee(runs, "lora-1", K) for K in (2, 8, 128)] == [False, True, False]
    table, density = summary.capacity_table(runs), summary.density_table(runs)
    assert "55.5±7.1 % (1,600, n 2)" in table and "30.0 % (6,400, n 1, rising)" in table
    assert "not run" in table and "FFT" not in table
    assert "LoRA r = 1  1.42±0.48" in density       # of 1.759 and 1.083


def test_half_is_passed_between_two_doublings_on_a_log_scale():
    found = capacity.curve(curve("full", 8, {100: 0.1, 200: 0.3, 400: 0.7}), "full", 8, 0)
    assert math.exp(crossing(found)) == pytest.approx(200 * math.sqrt(2))
    assert crossing({100: dict(share=0.6), 200: dict(share=0.9)}) is None    # before the first
    assert crossing({100: dict(share=0.1), 200: dict(share=0.4)}) is None
    runs = [*curve("full", 8, {100: 0.0, 200: 1.0}), *curve("full", 8, {100: 0, 200: 0}, seed=1)]
    assert capacity.steps_to_half(runs, "full", 8) is None                   # one seed never did


def test_a_run_stores_bits_and_is_the_same_again():
    job = CapacityJob("lora-1-qv", 2, 5, 1e-2, 4)
    first, again = capacity.run(job), capacity.run(job)
    assert first == again and first["trainable"] == 2048
    assert first["bits"] == pytest.approx(first["share"] * Languages(2, 5).bits)
    assert set(first["forgetting"]) == {"story", "facts", "ferry"}
    diverged = capacity.run(dataclasses.replace(job, arm="full", lr=1e30))
    assert diverged["loss"] is None and diverged["bits"] == 0
    with pytest.raises(ValueError, match="unknown arm 'lora-3'; known: lora-1-qv"):
        CapacityJob("lora-3", 2, 0, 1e-3, 25)


def fake(job: CapacityJob) -> dict:
    """A hundred bits per second of training, up to what the arm can hold; best at 1.8e-3."""
    trained = {"full": 10_000, "lora-1": 1000}[job.arm]
    bits = min(2 * job.steps, 0.5 * trained, job.K * BITS)
    notches = abs(RECIPES["full"].grid.index(job.lr) - RECIPES["full"].grid.index(1.8e-3))
    share = bits / (job.K * BITS) / (1 + notches)
    return dict(trainable=trained, loss=1 - share, share=share, bits=share * job.K * BITS)


def test_the_study_finds_the_rate_the_knee_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "run", fake)
    monkeypatch.setattr(capacity, "Runs", RunsHere)
    runs = capacity.study(tmp_path, 1, arms=("lora-1", "full"), offered=(2, 8))
    for arm in ("lora-1", "full"):
        swept = {r["lr"] for r in capacity.tried(runs, arm, 8)}
        assert {1e-3, 1.8e-3, 3.2e-3} <= swept and not capacity.tried(runs, arm, 32)
        # the lower of the two neighbours that are best together, both pairs being equally good
        assert {r["lr"] for r in runs if (r["arm"], r["split"]) == (arm, "report")} == {1e-3}
    assert [len(ends(runs, "lora-1", K)) for K in (2, 8)] == [3, 3]      # 250 of 536, 2145 bits
    assert [end["flat"] for end in ends(runs, "lora-1", 8)] == [True] * 3
    assert capacity.capacity(runs, "lora-1") == pytest.approx([0.25] * 3)
    lines = (tmp_path / capacity.LINES).read_text()
    monkeypatch.setattr(capacity, "run", None)                           # nothing is done again
    assert len(capacity.study(tmp_path, 1, arms=("lora-1", "full"), offered=(2, 8))) == len(runs)
    assert (tmp_path / capacity.LINES).read_text() == lines
    assert plot.capacity_figure(runs).axes


def test_the_best_rate_of_each_stored_sweep_has_worse_neighbours_on_both_sides():
    runs = capacity.read(RESULTS / "capacity")
    swept = {(r["arm"], r["K"]) for r in runs if r["split"] == "sweep"}
    assert len(swept) >= 6
    for arm, K in swept:
        grid = RECIPES[ARMS[arm].recipe].grid
        tried = capacity.tried(runs, arm, K)
        i = grid.index(capacity.best(tried))
        assert {grid[i - 1], grid[i + 1]} <= {r["lr"] for r in tried}, (arm, K)


def test_the_stored_study_has_one_rate_a_curve_chosen_by_the_rule_and_steps_that_double():
    runs = capacity.read(RESULTS / "capacity")
    cells = {(r["arm"], r["K"]) for r in runs if r["split"] == "report"}
    assert cells
    for arm, K in cells:
        (lr,) = {r["lr"] for r in runs if (r["arm"], r["K"], r["split"]) == (arm, K, "report")}
        assert lr == capacity.rate(runs, arm, K), (arm, K)
        steps = list(capacity.curve(runs, arm, K, 0))
        assert steps == doublings(K)[:len(steps)], (arm, K)


@pytest.mark.parametrize("arguments, message", [
    (["--arms", "lora-3"], "unknown arm 'lora-3'; known: lora-1-qv, "),
    (["--languages", "385"], "unknown number of languages 385; known: 2, 8, 32, 64, 128"),
    (["--workers", "0"], "--workers: must be a whole number, at least 1, got '0'"),
    (["--quick", "--arms", "full"], "--quick has its own arms and languages")])
def test_impossible_arguments_are_refused(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["capacity", "--out", str(tmp_path), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_line_of_another_version_or_without_its_bits_is_named(tmp_path):
    job = dataclasses.asdict(CapacityJob("full", 2, 0, 1e-3, 25))
    line = dict(version=capacity.VERSION, job=job, trainable=1, loss=0.5, share=0.5, bits=1.0)
    for change, message in (({"version": 0}, "line 1 is of version 0"),
                            ({"bits": "x"}, "line 1 is no run of a study"),
                            ({"job": job | {"K": 2.5}}, "line 1 is no run of a study")):
        (tmp_path / capacity.LINES).write_text(json.dumps(line | change) + "\n")
        with pytest.raises(ValueError, match=message):
            capacity.read(tmp_path)
