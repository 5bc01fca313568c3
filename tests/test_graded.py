"""The study of the graded task: what is run, when a curve is flat, what the tables say."""
import dataclasses
import itertools
import json
import math

import pytest

from minipeft.__main__ import main
from minipeft.files import RESULTS
from minipeft.lab import graded, plot, summary
from minipeft.lab.graded import EQUAL, at_the_end, flat, learned
from minipeft.lab.rates import choose, learning_rate
from minipeft.lab.runs import Job
from minipeft.recipes import RECIPES, adapt
from minipeft.tiny_world.pretrain import load_base
from minipeft.peft_model import count_parameters


def runs(arm: str, shares: dict[int, list[float]], size=None, split="report") -> list[dict]:
    return [dataclasses.asdict(Job(arm, "languages", seed, 1e-3, steps, split, size))
            | dict(share=share, trainable=7, loss=1.0)
            for steps, of_seeds in shares.items() for seed, share in enumerate(of_seeds)]


def test_a_curve_is_flat_when_the_same_seeds_gain_less_than_a_point():
    found = runs("lora", {200: [0.5, 0.5, 0.9], 400: [0.508, 0.51]})     # + 0.9 points in the mean
    assert flat(found, "lora", 400) and at_the_end(found, "lora") == (400, [0.508, 0.51], True)
    found = runs("lora", {200: [0.5, 0.5, 0.0], 400: [0.5, 0.522]})      # + 1.1
    assert not flat(found, "lora", 400)
    found = runs("prefix", {200: [0.04], 400: [0.045]})                  # has not begun: goes on
    assert not flat(found, "prefix", 400) and not flat([], "prefix", 400)


def test_sweeps_and_other_sizes_are_not_mixed_in():
    found = [*runs("lora", {200: [0.5]}), *runs("lora", {200: [0.1]}, size=1),
             *runs("lora", {200: [0.9]}, split="sweep")]
    assert learned(found, "lora", 200) == [0.5] and learned(found, "lora", 200, 1) == [0.1]


def test_arms_of_equal_size_train_about_as_many_numbers_as_said():
    for about, arms in EQUAL.items():
        for arm, size in arms:
            trained = count_parameters(adapt(load_base(0), arm, size))[0]
            # a LoRA of this GPT has 10,240 numbers a rank: 1 and 2 enclose 16,000
            assert trained in (10_240, 20_480) or abs(trained / about - 1) < 0.07, (arm, size)


def fake(job: Job) -> dict:
    """Full fine-tuning knows everything at once, a prompt nothing ever; the others by steps."""
    share = {"full": 1.0, "prompt": 0.0}.get(job.arm, 1 - 30 / job.steps)
    return dict(trainable=job.size or 5, loss=1 - share + 0.01 * job.lr, share=share,
                exact_match=0.0, forgetting={}, update_norm=None)


def test_the_study_doubles_the_steps_of_each_arm_until_it_is_flat(tmp_path, monkeypatch):
    monkeypatch.setattr(graded, "scores", fake)
    monkeypatch.setattr(graded, "run_study", in_this_process)
    found = graded.study(tmp_path, 1)
    most = {arm: at_the_end(found, arm)[0] for arm in RECIPES}
    # 1 - 30 / n gains 30 / n in a doubling to n: 7.5, 3.75, 1.9 and 0.9 points
    assert most == dict.fromkeys(RECIPES, 3200) | {"full": 400}
    assert [len(learned(found, "lora", steps)) for steps in (200, 400, 800)] == [6, 3, 3]
    assert all(learned(found, arm, 200, graded.stored_size(arm, size))
               for arms in EQUAL.values() for arm, size in arms)
    assert {r["lr"] for r in found if (r["arm"], r["steps"], r["size"], r["split"])
            == ("lora", 200, None, "report")} == {learning_rate("lora", "languages")}
    table = summary.graded_table(found)
    assert "FFT" in table and table.count(" yes") == len(RECIPES) - 1 and table.count(" no") == 1
    assert "about" in summary.equal_table(found) and plot.graded_figure(found).axes


def in_this_process(jobs, run, path, version, workers, progress, what, keys):
    lines = [dict(version=version, job=dataclasses.asdict(job)) | run(job) for job in jobs]
    before = path.read_text() if path.exists() else ""
    path.write_text(before + "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_the_command_refuses_what_the_study_decides_itself(capsys):
    for more in (["--seeds", "2"], ["--sweep"], ["--quick"], ["--methods", "lora"],
                 ["--tasks", "languages"]):
        with pytest.raises(SystemExit) as stop:
            main(["compare", "--graded", *more])
        assert stop.value.code == 2
        assert "--graded has its own" in capsys.readouterr().err


def test_the_stored_study_has_its_seeds_and_one_rate_an_arm_chosen_by_the_rule():
    found = graded.read(RESULTS / "languages")
    lacking = [arm for arm in RECIPES
               if len(learned(found, arm, graded.FAST)) != len(graded.FAST_SEEDS)]
    assert lacking == [], "python -m minipeft compare --graded --out benchmarks/results/languages"
    for (arm, size, task), runs_ in itertools.groupby(
            sorted((r for r in found if r["size"]), key=group), key=group):
        runs_ = list(runs_)
        (rate,) = {r["lr"] for r in runs_ if r["split"] == "report"}
        tried = [r for r in runs_ if r["split"] == "sweep"]
        assert rate == choose(tried), (arm, size, task)
        assert {r["lr"] for r in tried} == set(graded.around(RECIPES[arm].grid,
                                                             learning_rate(arm, task), None))
        assert not {r["seed"] for r in tried} & {*graded.FAST_SEEDS}
    slow = {(r["arm"], r["lr"]) for r in found if r["steps"] > graded.FAST
            and r["split"] == "report"}
    assert len({arm for arm, _ in slow}) == len(slow), "two rates of one arm are mixed"


def group(run: dict) -> tuple:
    return run["arm"], run["size"], run["task"]


WHOLE = {"arm": "lora", "task": "languages", "seed": 0, "lr": 0.1, "steps": 200, "split": "report",
         "size": None}
SCORES = {"version": graded.VERSION, "trainable": 1, "loss": None, "exact_match": 0.0, "share": 0.0}


@pytest.mark.parametrize("line", [
    {"job": WHOLE | {"steps": "x"}}, {"job": WHOLE | {"size": 1.5}}, {"job": WHOLE | {"arm": None}},
    {"job": {}}, {"job": WHOLE, "share": "x"}, {"job": WHOLE, "share": math.nan}])
def test_a_line_that_lacks_what_a_study_wants_is_named_and_a_diverged_run_is_read(line, tmp_path):
    path = tmp_path / graded.LINES
    path.write_text(json.dumps(SCORES | {"job": WHOLE}) + "\n")
    assert [run["loss"] for run in graded.read(tmp_path)] == [None]
    path.write_text(json.dumps(SCORES | line) + "\n")
    with pytest.raises(ValueError, match="graded.jsonl, line 1 is no run of a study"):
        graded.read(tmp_path)


@pytest.mark.parametrize("line", ['{"version": 0, "job": {}}', "null"])
def test_a_study_of_another_version_is_named(line, tmp_path):
    (tmp_path / graded.LINES).write_text(line + "\n")
    with pytest.raises(ValueError, match="graded.jsonl, line 1"):
        graded.read(tmp_path)
