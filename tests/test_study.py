"""A long study goes on where it stopped, and mixes nothing."""
import json
import time
from dataclasses import dataclass

import pytest
import torch

from minipeft.lab.study import in_processes, read_lines, run_study


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
    ("[1]", "line 1 is no run of a study")])
def test_lines_of_another_version_or_none_are_named(line, message, tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"study.jsonl, {message}"):
        run_study([Job("a")], run, path, 1, workers=1)
    assert path.read_text() == line + "\n"


def test_no_file_is_an_empty_study(tmp_path):
    assert read_lines(tmp_path / "none.jsonl", 1) == {}


def test_a_progress_bar_sees_every_result():
    seen = []

    def progress(results, total, desc):
        for result in results:
            seen.append((total, desc))
            yield result
    assert len(list(in_processes(run, [Job("a"), Job("b")], 2, progress, "x"))) == 2
    assert seen == [(2, "x")] * 2
