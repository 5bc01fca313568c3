"""A folder of output is one process's alone, and a false start leaves it as it was."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CONTEXT

import minipeft
from minipeft.cli import UsageError, check_output
from minipeft.folders import locked
from minipeft.llm.run_files import CHECKPOINT, RUN, claimed

def hold(folder, pipe):
    with locked(folder):
        pipe.send("in")
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in tmp_path."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "in"
    yield process
    process.kill()
    process.join()


def test_a_lock_keeps_other_processes_out_and_ends_with_its_process(holder, tmp_path):
    with pytest.raises(ValueError, match="another process is at work in .*; wait .* --out"):
        with locked(tmp_path):
            pass
    holder.kill()                                # as by the operating system, without a clean end
    holder.join()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_is_refused_while_another_process_works_in_its_folder(resume, holder, tmp_path):
    if resume:
        (tmp_path / RUN).write_text("{}")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="another process is at work"):
        with claimed(tmp_path, resume):
            pytest.fail("both are in")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def waits(folder, order, started):
    started.set()
    with locked(folder, wait=True):
        order.put("other")


def test_who_waits_comes_after(tmp_path):
    order, started = CONTEXT.Queue(), CONTEXT.Event()
    with locked(tmp_path):
        other = CONTEXT.Process(target=waits, args=(tmp_path, order, started))
        other.start()
        assert started.wait(60)
        time.sleep(0.5)
        order.put("first")
    other.join()
    assert [order.get(timeout=10), order.get(timeout=10)] == ["first", "other"]


class Failure(RuntimeError):
    """Of a kind that nobody foresaw."""


@pytest.mark.parametrize("there", [[], [RUN]])
@pytest.mark.parametrize("depth", ["", "a", "a/b"])
def test_a_new_run_that_fails_before_its_first_checkpoint_leaves_nothing(there, depth, tmp_path):
    folder = tmp_path / "out" / depth
    with pytest.raises(Failure), claimed(folder):
        for name in there:
            (folder / name).write_text("{}")
        raise Failure
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)                   # the same in a folder that was there, and empty
    with pytest.raises(Failure), claimed(folder):
        for name in there:
            (folder / name).write_text("{}")
        raise Failure
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error, resume, there", [
    (Failure, False, [RUN, CHECKPOINT]), (Failure, True, [RUN]), (KeyboardInterrupt, False, [RUN]),
    (None, False, [RUN]), (Failure, False, [RUN, "notes.txt"])])
def test_what_can_be_resumed_or_is_somebodys_stays(error, resume, there, tmp_path):
    folder = tmp_path / "out"
    if resume:
        folder.mkdir()
    try:
        with claimed(folder, resume):
            for name in there:
                (folder / name).write_text("{}")
            if error:
                raise error
    except (Failure, KeyboardInterrupt):
        pass
    assert sorted(path.name for path in folder.iterdir()) == sorted(there)


def test_interrupted_before_anything_is_there_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["report.json", "memory.png", "model.safetensors", "a.jsonl"])
def test_a_folder_where_a_file_should_go_is_found_before_any_work(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=f"{name} is a folder, where a file .* move it away"):
        check_output(tmp_path)
    (tmp_path / name).rmdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / name).write_text("old")
    check_output(tmp_path)
    assert (tmp_path / name).read_text() == "old"


COMMAND = [sys.executable, "-m", "minipeft"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(minipeft.__file__).parents[1]),
                                "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.long
def test_two_seeds_pretrained_at_once_are_both_in_the_record(tmp_path):
    runs = [start(f"pretrain --steps 1 --seed {seed} --out out".split(), tmp_path)
            for seed in (3, 4)]
    assert [run.wait() for run in runs] == [0, 0], [run.stderr.read() for run in runs]
    record = json.loads((tmp_path / "out" / "tiny_gpt.json").read_text(encoding="utf-8"))
    assert set(record) == {"3", "4"}
