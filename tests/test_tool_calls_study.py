"""The study of SmolLM2: its runs, the rates it takes, its order, its tables and pictures."""
import dataclasses
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL
from runs_here import RunsHere

from minipeft import GPT
from minipeft.files import check_keys
from minipeft.lab import tool_calls as lines
from minipeft.lab import tool_calls_plot as plot
from minipeft.lab.tool_calls import Job, best_rate, chosen, differences, forgotten, rates
from minipeft.llm.chat import END, read_jsonl
from minipeft.llm.finetune import validate
from minipeft.recipes import RECIPES

pytest.importorskip("tokenizers", reason="tokenizers is the optional extra minipeft[llm]")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import tool_calls_study as study

DATA = ROOT / "data" / "tool_calls"
CALL = '{"tool": "alarm", "time": "7 am"}'


class Characters:
    """A tokenizer with a token a character, and END as token 0."""

    def encode(self, text):
        parts = list(re.finditer(f"{re.escape(END)}|.", text, re.DOTALL))
        return SimpleNamespace(ids=[0 if part[0] == END else ord(part[0]) % 60 + 1
                                    for part in parts], offsets=[part.span() for part in parts])

    def decode(self, ids):
        return " ".join(map(str, ids))

    def token_to_id(self, token):
        return 0


# The data


def test_the_ten_questions_and_the_ordinary_conversations_have_nothing_in_common():
    asked, mixed = (read_jsonl(DATA / f"{name}.jsonl") for name in ("questions", "ordinary"))
    assert len(asked) == 10 and len(mixed) == study.ORDINARY
    assert study.ORDINARY == pytest.approx(0.05 * (lines.TRAINING + study.ORDINARY), abs=1)
    texts = [messages[i]["content"].lower() for messages in (*asked, *mixed) for i in (0, 1)]
    assert len(set(texts)) == len(texts) and not any(text.startswith("{") for text in texts)


# A run


def test_a_token_of_a_call_is_form_name_value_or_stop():
    marks = {"f": "form", "n": "name", "v": "values", "s": "stop"}
    #       {"tool": "alarm", "time": "7 am"}END
    by_hand = "ffffffffff" "nnnnn" "ffffffffffff" "vvvv" "ff" "s"
    assert study.token_kinds(CALL, Characters()) == [marks[c] for c in by_hand]


def test_an_answer_is_right_in_a_kind_if_all_its_tokens_of_it_are():
    hits = torch.tensor([True, True, False, True, True, True])
    found = study.by_kind(hits, [["form", "values", "values", "stop"], ["name", "stop"]])
    assert found == [dict(form=True, stop=True, name=True, values=False),
                     dict(form=True, stop=True, name=True, values=True)]


@pytest.mark.parametrize("got, kind", [
    ("Sure!", "form"), ('{"tool": "alarm", "time": "7 am"', "form"), ("7", "form"),
    ('{"tool": "alarm", "hour": "7 am"}', "form"), ('{"time": "7 am", "tool": "alarm"}', "form"),
    ('{"tool":"alarm","time":"7 am"}', "form"), (CALL + " " + CALL, "stop"), (CALL + "\n", "stop"),
    ('{"tool": "timer", "duration": "7"}', "name"),
    ('{"tool": "alarm", "time": "8 am"}', "values")])
def test_an_error_is_named_by_what_is_wrong_first(got, kind):
    assert study.error_kind(CALL, got) == kind


def conversations(n: int) -> list[list[dict]]:
    return read_jsonl(DATA / "validation.jsonl")[:n]


def small_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(replace(SMALL, max_position_embeddings=1024)).eval()


def test_the_watch_sees_the_loss_and_exact_match_of_a_validation():
    model, watch = small_gpt(), study.Watch(Characters(), conversations(12))
    watch(model, 5)
    wanted = validate(model, watch.examples, 4)
    (point,) = watch.curve
    assert point["step"] == 5 and point["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert point["exact_match"] == wanted["exact_match"] == sum(watch.right) / 12


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "load", lambda: (small_gpt(), Characters()))
    monkeypatch.setattr(study, "docstrings", lambda tokenizer: [([1, 2, 3], [1, 2, 3])])
    monkeypatch.setattr(study, "answers", lambda model, tokenizer, asked, progress:
                        ["?"] * len(asked))              # tests/test_tool_calls.py has their test


def test_a_run_gives_what_a_line_wants(small):
    job = Job("lora", 1e-3, 1, 11, "float32", examples=16, ordinary=5, requests=3)
    found = study.run(job)
    check_keys(found, lines.RESULT, "a run", "")
    assert [point["step"] for point in found["curve"]] == [10, 11]
    assert found["loss"] == found["curve"][-1]["loss"] < found["curve"][0]["loss"]
    assert len(found["test"]) == len(found["validation"]) == 3 and len(found["answers"]) == 10
    assert [e["request"] for e in found["errors"]] == [i for i in range(3) if not found["test"][i]]
    assert found["bytes"]["training"] == 3 * 4 * found["trainable"]        # float32, two moments
    swept = study.run(replace(job, split="sweep"))
    assert swept["test"] is None and swept["loss"] == found["loss"]
    json.dumps(found, allow_nan=False)


def test_a_run_of_no_steps_is_the_model_before(small):
    found = study.run(Job("lora", 0.0, 0, 0, "float32", requests=3))
    watch = study.Watch(Characters(), conversations(3))
    watch(small_gpt(), 0)
    assert found["curve"] == watch.curve and found["seconds_per_step"] is None


def test_a_run_that_diverges_answers_nothing(small):
    found = study.run(Job("full", 1e30, 0, 4, "float32", requests=3))
    check_keys(found, lines.RESULT, "a run", "")
    assert found["loss"] is None and found["test"] == [0, 0, 0] and found["answers"] is None


def test_each_seed_trains_on_another_part_of_the_training_set():
    whole = study.encoded(read_jsonl(DATA / "train.jsonl")[:96], Characters())

    def part(seed):
        return study.training_set(Job("lora", 1e-3, seed, 9, "float32", examples=32), Characters())
    assert [part(0), part(1), part(2)] == [whole[:32], whole[32:64], whole[64:]]
    ordinary = study.encoded(read_jsonl(DATA / "ordinary.jsonl"), Characters())
    assert study.training_set(Job("lora", 1e-3, 1, 9, "float32", examples=32, ordinary=105),
                              Characters()) == whole[32:64] + ordinary


# Rates


def line(method: str, lr: float = 1e-3, seed: int = 0, steps: int = 180, **about) -> dict:
    job = {key: about.pop(key) for key in list(about) if key in lines.JOB}
    found = dict(trainable=7, bytes=dict(weights=1, training=1), machine={}, seconds_per_step=1.0,
                 curve=[], loss=0.5, validation=[1, 0], docstrings=3.0, test=[1, 1, 0, 0],
                 test_loss=0.1, errors=[], answers=[CALL] * 4 + ["Paris."] * 6)
    return dataclasses.asdict(Job(method, lr, seed, steps, "bfloat16", **job)) | found | about


def sweep(method: str, losses: dict, seeds=lines.SWEEP_SEEDS) -> list[dict]:
    return [line(method, lr, seed, loss=loss, split="sweep", test=None, answers=None)
            for lr, loss in losses.items() for seed in seeds]


def test_three_rates_are_tried_until_no_best_one_of_a_family_stands_at_an_end():
    family = ("lora", "qlora")
    assert rates([], family) == (1e-3, 3e-3, 1e-2)
    inside = sweep("lora", {1e-3: 3.0, 3e-3: 1.0, 1e-2: 2.0})
    assert rates(inside, family) == (1e-3, 3e-3, 1e-2)                   # qlora is not there
    rising = sweep("qlora", {1e-3: 3.0, 3e-3: 2.0, 1e-2: 1.0})
    assert rates(inside + rising[:-1], family) == (1e-3, 3e-3, 1e-2)     # nor a seed of it
    assert rates(inside + rising, family) == (1e-3, 3e-3, 1e-2, 3e-2)    # lora tries that one too
    assert chosen(inside + rising, "lora") is None
    both = inside + rising + sweep("lora", {3e-2: 9.0}) + sweep("qlora", {3e-2: None})
    assert rates(both, family) == (1e-3, 3e-3, 1e-2, 3e-2)
    assert (chosen(both, "lora"), chosen(both, "qlora"), chosen(both, "full")) == (3e-3, 1e-2, None)
    end = sweep("full", {1e-5: 0.1, 2e-5: 0.2, 5e-5: 0.3, 1e-4: 0.4, 2e-4: 0.5})
    assert rates(end, ("full",)) == (1e-5, 2e-5, 5e-5, 1e-4, 2e-4)       # the grid ends there


def test_the_best_rate_is_that_of_the_mean_over_the_seeds():
    found = [*sweep("lora", {1e-3: 1.0}), *sweep("lora", {3e-3: 0.5}, [100]),
             *sweep("lora", {3e-3: 1.6}, [101]), *sweep("lora", {1e-2: None})]
    assert best_rate(found, "lora", (1e-3, 3e-3, 1e-2)) == 1e-3


def test_every_grid_has_three_rates_to_begin_with_and_room_on_both_sides():
    for grid in lines.GRIDS.values():
        assert list(grid) == sorted(grid)
        assert 1 < grid.index(lines.MIDDLE[grid]) < len(grid) - 2
    assert lines.GRIDS.keys() == RECIPES.keys(), "GRIDS in lab/tool_calls.py: a line a method"


# What came out


def made_up() -> list[dict]:
    curve = [{"step": step, "loss": 1 / step, "exact_match": share, "form": 1.0, "stop": 1.0,
              "name": 0.9, "values": share} for step, share in ((10, 0.25), (180, 0.75))]
    error = {"request": 0, "kind": "values", "got": ""}
    before = dict(lr=0.0, steps=0, seed=0, test=[0] * 4)
    return [*sweep("lora", {1e-3: 3.0, 3e-3: 1.0, 1e-2: None}),
            line("lora", docstrings=2.5, **before), line("qlora", docstrings=2.8, **before),
            line("lora", 3e-3, 0, test=[1, 1, 1, 0], curve=curve, errors=[error]),
            line("lora", 3e-3, 1, test=[1, 1, 0, 0], curve=curve, errors=[error] * 2),
            line("qlora", 3e-3, 0, test=[1, 0, 0, 0], curve=curve),
            line("lora", 3e-3, 0, examples=16, test=[0, 1, 0, 0]),
            line("lora", 3e-3, 0, steps=360, test=[1, 1, 1, 1]),
            line("lora", 3e-3, 0, ordinary=105, answers=["Paris."] * 10)]


def test_forgetting_is_counted_over_the_base_in_the_same_form():
    runs = made_up()
    assert [forgotten(runs, lines.report(runs, method)[0]) for method in ("lora", "qlora")] == (
        pytest.approx([3.0 - 2.5, 3.0 - 2.8]))
    assert forgotten(runs, line("full")) is None                # its base was not run


def test_differences_are_of_the_same_requests_and_of_a_method_itself_on_the_same_seeds():
    found = {(d["a"], d["b"]): d for d in differences(made_up())}
    assert {pair: d["mean"] for pair, d in found.items()} == {
        ("LoRA", "QLoRA"): 5 / 8 - 1 / 4, ("LoRA, 16 examples", "LoRA"): 1 / 4 - 3 / 4,
        ("LoRA, 360 steps", "LoRA"): 1 - 3 / 4, ("LoRA, 105 ordinary", "LoRA"): 2 / 4 - 3 / 4}
    assert found["LoRA", "QLoRA"]["n_seeds"] == (2, 1) and found["LoRA", "QLoRA"]["seeds"] is None


def test_the_tables_say_what_the_lines_hold():
    runs = made_up()
    rows = [row.split() for row in lines.sweep_table(runs).splitlines()[2:]]
    assert [(row[1], row[-1]) for row in rows] == [("0.001", "0"), ("0.003", "chosen"),
                                                  ("0.01", "2")]
    end = sweep("full", {1e-5: 0.1, 2e-5: 0.2, 5e-5: 0.3, 1e-4: 0.4, 2e-4: 0.5})
    assert "chosen, at the grid's end" in lines.sweep_table(end).splitlines()[2]
    lora = lines.report_table(runs).splitlines()[2].split()
    assert lora == ["LoRA", "7", "bfloat16", "0.003", "180", "2", "62.5±17.7", "0.1000±0.0000", "0",
                    "0", "0", "3", "0.50±0.00"]
    other = lines.other_table(runs).splitlines()
    assert other[2].split()[-1] == "4.0±0.0" and other[-1].split() == [
        "LoRA,", "105", "ordinary", "1", "50.0", "0.0"]
    assert lines.arc_table(runs, "lora").splitlines()[2:] == [
        "10          100   100   90    25      25", "180         100   100   90    75      75"]
    assert "LoRA - QLoRA" in lines.differences_table(runs)


def test_the_pictures_show_a_mark_for_each_number():
    runs = made_up()
    drawn = {name: draw(runs) for name, draw in plot.PICTURES.items()}
    assert [len(ax.lines) for ax in drawn["curves"].axes] == [2, 2]
    assert [len(ax.lines) for ax in drawn["arc"].axes] == [4, 4]
    (sizes,) = drawn["sizes"].axes
    assert [list(mark.get_ydata()) for mark in sizes.lines] == [[25.0, 75.0], [50.0]]
    (pairs,) = drawn["differences"].axes
    assert [text.get_text() for text in pairs.get_yticklabels()] == ["LoRA - QLoRA"]
    for name, draw in plot.PICTURES.items():
        assert draw([]).axes, name                       # an unfinished study


# The order


def fake(job: Job) -> dict:
    """Best at 3e-3 (LoRA) and 1e-2 (QLoRA)."""
    grid = lines.WEIGHTS
    best = {"lora": 3e-3, "qlora": 1e-2}[job.method]
    notches = 0 if job.lr == 0 else abs(grid.index(job.lr) - grid.index(best))
    record = line(job.method, loss=float(notches), curve=[])
    return {key: value for key, value in record.items() if key not in lines.JOB}


def test_the_study_does_what_is_missing_and_ends_with_every_phase(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "Runs", RunsHere)
    monkeypatch.setattr(study, "run", fake)
    drawn = set()
    monkeypatch.setattr(study, "save_figure", lambda draw, path: drawn.add(path.stem))
    plan = study.Plan((("lora", "qlora"),), steps=180, seeds=(0, 1), sizes=(16, 64),
                      sized=("lora",))
    names = []

    def progress(jobs, total, desc):
        names.append((desc, total))
        return jobs
    for _ in range(2):
        study.study(tmp_path, plan, 1, progress)
        assert len((tmp_path / lines.LINES).read_text().splitlines()) == 2 + 16 + 2 + 2 + 2 + 2 + 2
    assert names[:7] == [("before training", 2), ("rates of LoRA, QLoRA", 12),
                         ("rates of LoRA, QLoRA", 16), ("seeds of LoRA, QLoRA", 4),
                         ("with ordinary conversations", 2), ("fewer examples", 2),
                         ("twice the steps", 2)]
    runs = lines.read(tmp_path)
    assert {r["seed"] for r in runs if r["split"] == "sweep"}.isdisjoint(plan.seeds)
    assert {(r["method"], r["lr"]) for r in runs if r["split"] == "report" and r["steps"]} == {
        ("lora", 3e-3), ("qlora", 1e-2)}
    stored = json.loads((tmp_path / study.DIFFERENCES).read_text())
    assert stored == json.loads(json.dumps(differences(runs)))
    assert "LoRA - QLoRA" in capsys.readouterr().out
    assert drawn == plot.PICTURES.keys()


def test_what_cannot_be_reported_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            study.main()
        return stopped.value.code
    assert call("report", "--out", tmp_path).startswith(f"no finished run in {tmp_path}")
    (tmp_path / lines.LINES).write_text('{"version": 1}\n')
    assert "runs.jsonl, line 1 is no run of a study" in call("report", "--out", tmp_path)
    assert call("--out", tmp_path / lines.LINES) == 2
    assert "must be a folder" in capsys.readouterr().err
    assert call("--workers", 0) == 2


def test_a_methods_rate_on_a_language_model_is_the_one_that_the_stored_sweep_chose():
    found = lines.read(ROOT / "benchmarks" / "results" / "tool_calls")
    swept = {method: rate for method in RECIPES if (rate := chosen(found, method)) is not None}
    assert swept == {method: RECIPES[method].llm_lr for method in swept} and len(swept) >= 3


def test_costs_are_bytes_and_medians(tmp_path):
    cost = {"weights": 5_400_000, "training": 600_000, "seconds": [9.0, 1.0, 1.25]}
    costs = {"machine": {}, "float32": dict.fromkeys(RECIPES, cost),
             "bfloat16": dict.fromkeys(RECIPES, cost | {"weights": 2_400_000})}
    (tmp_path / lines.COSTS).write_text(json.dumps(costs))
    head, _, *rows = lines.costs_table(lines.read_costs(tmp_path)).splitlines()
    assert head.split("  ")[-1].strip() == "bfloat16: s/step" and len(rows) == len(RECIPES)
    assert rows[1].split() == ["LoRA", "6", "1.25", "3", "1.25"]
    del costs["bfloat16"]["lora"]
    (tmp_path / lines.COSTS).write_text(json.dumps(costs))
    with pytest.raises(ValueError, match="lacks lora.*make it again with: python benchmarks/tool_"):
        lines.read_costs(tmp_path)
