"""A long study goes on where it stopped, and mixes nothing."""
import json
import math
import time
from dataclasses import dataclass

import pytest
import torch

from minipeft.lab import study
from minipeft.lab.study import Runs, in_processes, read_lines, run_study


@dataclass(frozen=True)
class Job:
    name: str
    lr: float = 0.1


def run(job: Job) -> dict:
    return {"loss": len(job.name) * job.lr, "threads": torch.get_num_threads()}


def slow(job: Job) -> dict:
    time.sleep(0.3 if job.name == "a" else 0)
    return run(job)


def test_every_run_is_a_line_and_only_missing_ones_are_done(tmp_path):
    path, jobs = tmp_path / "results" / "study.jsonl", [Job("a"), Job("bb")]
    first = run_study(jobs, slow, path, 1, workers=2)
    assert [r["loss"] for r in first] == pytest.approx([0.1, 0.2])      # in the order of the jobs
    assert {r["threads"] for r in first} == {1}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["job"]["name"] for line in lines} == {"a", "bb"}
    lines[0]["loss"] = 7.0                                              # marked: must be kept
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = run_study([*jobs, Job("ccc")], slow, path, 1, workers=2)
    assert 7.0 in [r["loss"] for r in again] and len(path.read_text().splitlines()) == 3
    assert path.read_text().startswith("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("line, message", [
    ('{"version": 2, "job": {"name": "a", "lr": 0.1}}', "line 1 is of version 2 .* now at 1"),
    ('{"version": 1, "job"', "line 1 is no run of a study"),
    ('{"version": 1}', "line 1 is no run of a study"),
    ('{"version": 1, "job": {}, "loss": NaN}', "line 1 is no run .* NaN is not finite"),
    ('{"version": 1, "job": {"name": "a", "lr": 0.1}}', "line 1 is no run .* lacks loss"),
    ('{"version": 1, "job": {"name": "a", "lr": 0.1}, "loss": "x"}', "line 1 .* loss must be a nu"),
    ("[1]", "line 1 is no run of a study")])
def test_lines_of_another_version_or_none_are_named(line, message, tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"study.jsonl, {message}"):
        run_study([Job("a")], run, path, 1, workers=1, keys={"loss": (float, type(None))})
    assert path.read_text() == line + "\n"


def diverged(job: Job) -> dict:
    return {"loss": None if job.name == "a" else math.inf}


def test_a_loss_of_null_is_kept_and_one_that_is_not_finite_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "in_processes", lambda call, inputs, *_: map(call, inputs))
    path, keys = tmp_path / "study.jsonl", {"loss": (float, type(None))}
    for _ in range(2):
        found, = run_study([Job("a")], diverged, path, 1, workers=1, keys=keys)
        assert found["loss"] is None
    kept = path.read_text()
    with pytest.raises(ValueError, match="study.jsonl is not written: .* infinite"):
        run_study([Job("a"), Job("b")], diverged, path, 1, workers=1)
    assert path.read_text() == kept and kept.count("\n") == 1


def test_no_file_is_an_empty_study(tmp_path):
    assert read_lines(tmp_path / "none.jsonl", 1, {}) == {}


def test_a_progress_bar_sees_every_result(forked):
    seen = []

    def progress(results, total, desc):
        for result in results:
            seen.append((total, desc))
            yield result
    assert len(list(in_processes(run, [Job("a"), Job("b")], 2, progress, "x"))) == 2
    assert seen == [(2, "x")] * 2


def longer(job: Job) -> dict:
    """Of a chain whose next run depends on the last."""
    return {"loss": float(len(job.name)), "threads": torch.get_num_threads()}


def test_chains_go_on_from_what_is_there_and_write_each_run_once(forked, tmp_path):
    path = tmp_path / "results" / "study.jsonl"

    def followed(most: int) -> list[dict]:
        with Runs(longer, path, 1, 2, {"loss": float}) as runs:
            def follow(letter: str) -> None:
                name = letter
                while runs(Job(name))["loss"] < most:
                    name += letter
            runs.chains(follow, ["a", "b", "c"])
            return runs.lines()

    assert sorted(line["job"]["name"] for line in followed(2)) == ["a", "aa", "b", "bb", "c", "cc"]
    before = path.read_text()
    assert len(followed(3)) == 9 and path.read_text().startswith(before)
    assert len(path.read_text().splitlines()) == 9
    assert {line["threads"] for line in followed(3)} == {1}


def test_a_chain_that_fails_ends_the_study_and_keeps_its_lines(forked, tmp_path):
    def follow(name: str) -> None:
        runs(Job(name))
        raise FloatingPointError(name)

    with pytest.raises(FloatingPointError, match="a"), \
            Runs(longer, tmp_path / "study.jsonl", 1, 1, {"loss": float}) as runs:
        runs.chains(follow, ["a"])
    assert list(read_lines(tmp_path / "study.jsonl", 1, {}))
