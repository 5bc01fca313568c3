"""A machine that is not ours: folders that cannot be written, an output that is not UTF-8, a home
without room for a cache, another working directory."""
import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import SMALL

import minipeft
from minipeft import GPT
from minipeft.__main__ import SPELT, main
from minipeft.cli import COMMANDS, check_output
from minipeft.course import claims
from minipeft.course.questions import questions
from minipeft.files import DATA, RESULTS
from minipeft.lab import compare, plot, rates
from minipeft.tiny_world import pretrain

# Every command that writes, and what would do its work.
WRITING = {"compare --quick": "minipeft.lab.compare.compare",
           "compare --sweep": "minipeft.lab.rates.sweep",
           "capacity --quick": "minipeft.lab.capacity.study",
           "pretrain": "minipeft.tiny_world.pretrain.pretrain",
           "finetune --data data.jsonl": "minipeft.llm.base.load",
           "merge run": "minipeft.llm.base.load",
           "memory --model llama-2-7b": "minipeft.lab.plot.memory_plan_picture",
           "course student": "minipeft.course.student.release",
           "course source": "minipeft.course.student.write_source",
           "course site": "minipeft.course.site.build",
           "course grade class": "minipeft.course.grade.collect",
           "course explore": "minipeft.course.explore.page.html",
           "claims --remeasure": "minipeft.course.claims.remeasure",
           "bench nf4": "minipeft.lab.bench_nf4.run", "bench step": "minipeft.lab.bench_step.run",
           "bench decode": "minipeft.lab.bench_decode.run"}


# ---------------------------------------------------------------- what cannot be written


# chmod does not stop root, who may run the tests; nobody can make a folder below a file or in /proc
@pytest.mark.parametrize("command, work", WRITING.items(), ids=WRITING)
@pytest.mark.parametrize("out", ["a file/out", pytest.param("/proc/out", marks=pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder of Linux that nobody can write"))])
def test_output_that_cannot_be_written_is_refused_before_any_work(command, work, out, monkeypatch,
                                                                  tmp_path, capsys):
    if "llm" in work:
        pytest.importorskip("tokenizers")
    if "student" in work:
        pytest.importorskip("nbgrader")
    if "explore" in work:
        pytest.importorskip("plotly")
    if "site" in work:
        pytest.importorskip("minipeft.course.site", exc_type=ImportError)
    (tmp_path / "a file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, lambda *args, **kwargs: pytest.fail("it began to work"))
    file = f"{out}/explore.html" if "explore" in work else out         # the others name a folder
    assert main([*command.split(), "--out", file]) == 1
    stdout, err = capsys.readouterr()
    assert stdout == "" and err.count("\n") == 1
    assert f"nothing can be written into {Path(out)} (" in err and "with --out" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["a file"]


def test_every_command_that_has_an_out_is_tried_above(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        tried = any(command.split()[0] == name for command in WRITING)
        assert tried == ("--out" in capsys.readouterr().out), name


def test_looking_leaves_nothing_behind_even_on_a_full_disk(monkeypatch, tmp_path):
    (tmp_path / "kept").mkdir()
    folders = tmp_path / "kept", tmp_path / "new" / "deep"

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for folder in folders:
        check_output(folder)
    monkeypatch.setattr(Path, "write_bytes", full)
    for folder in folders:
        with pytest.raises(OSError, match=r"written into .* \(No space left"):
            check_output(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_numba_compiles_where_it_can_keep_nothing(tmp_path):
    if os.name == "nt":
        pytest.skip("no variable moves the user's cache there")
    shutil.copytree(Path(minipeft.__file__).parent, tmp_path / "minipeft",
                    ignore=shutil.ignore_patterns("__pycache__"))
    nowhere = tmp_path / "minipeft" / "nf4" / "__pycache__"
    nowhere.write_text("a file, so that no folder of this name can be made, nor one below it")
    code = ("import torch; from minipeft.nf4 import quantize_nf4; W = torch.randn(8, 64); "
            "pairs = zip(*(quantize_nf4(W, backend=b) for b in ('cpu', 'reference'))); "
            "print(torch.equal(*next(pairs)))")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HOME": f"{nowhere}/home",
                          "XDG_CACHE_HOME": f"{nowhere}/cache",
                          "NUMBA_CACHE_DIR": f"{nowhere}/numba"})
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert done.stderr.count("every process will compile the NF4 kernels anew") == 1


def test_a_home_that_cannot_be_written_and_a_folder_with_spaces(tmp_path):
    (tmp_path / "home").write_text("a file")
    (tmp_path / "another folder").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "minipeft", "memory", "--model", "llama-2-7b", "--out", "my plans"],
        capture_output=True, text=True, cwd=tmp_path / "another folder",
        env=os.environ | {"HOME": str(tmp_path / "home"), "PYTHONIOENCODING": "ascii",
                          "PYTHONPATH": str(Path(minipeft.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "another folder" / "my plans" / "memory.png").stat().st_size > 5000


# ---------------------------------------------------------------- what ships is not overwritten


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """In an empty folder; at the end, every file of data/ must be the one that was there."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in DATA.rglob("*") if path.is_file()}
    yield
    assert {path: path.stat().st_mtime_ns for path in DATA.rglob("*") if path.is_file()} == before


def test_pretraining_does_not_replace_the_shipped_bases(shipped, monkeypatch, capsys):
    report = {"steps": 1, "seconds": 0.0, "validation": {}}
    monkeypatch.setattr(pretrain, "pretrain", lambda *args: (pretrain.tiny_gpt(0), report))
    assert main(["pretrain", "--steps", "1"]) == 0
    assert 'load_base(0, "results") loads it' in capsys.readouterr().out
    pretrain.load_base(0, Path("results"))
    assert pretrain.read_record("results")["0"]["command"].endswith("--seed 0 --out results")


def test_a_sweep_does_not_replace_the_shipped_rates_and_says_how_to_use_its_own(
        shipped, monkeypatch, capsys):
    def run_study(jobs, run, path, version, workers, progress, desc, keys):
        path.parent.mkdir(parents=True)
        return [dict(version=version, job=asdict(job), loss=1.0, share=0.5) for job in jobs]
    monkeypatch.setattr(rates, "run_study", run_study)
    assert main(["compare", "--sweep", "--methods", "lora", "--tasks", "elicit"]) == 0
    found = Path("results") / "learning_rates.json"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"written: {found}; to compare at these rates, copy it over {rates.LEARNING_RATES}")
    new, old = (json.loads(path.read_text()) for path in (found, rates.LEARNING_RATES))
    swept = {"lora": 3.2e-4}                         # the smallest, where every loss is the same
    assert new["chosen"] == old["chosen"] | {"elicit": old["chosen"]["elicit"] | swept}
    others = [run for run in old["runs"] if (run["task"], run["arm"] in swept) != ("elicit", True)]
    assert new["runs"][:len(others)] == others and len(new["runs"]) > len(others)
    assert {run["share"] for run in new["runs"][len(others):]} == {0.5}


def test_a_table_of_rates_that_lacks_one_is_refused_by_name(shipped, monkeypatch, capsys):
    found = Path("rates.json")
    found.write_text('{"chosen": {"novel": {"lora": 0.001}}, "runs": []}')
    monkeypatch.setattr(rates, "LEARNING_RATES", found)
    assert main(["compare", "--quick"]) == 1
    assert "has no rate of 'full' on 'novel'" in capsys.readouterr().err


# ---------------------------------------------------------------- an output that is not UTF-8


@pytest.fixture(params=["cp1252", "ascii"])
def printed(request):
    """printed(["quiz"]): what a command prints where stdout has this encoding; its name."""
    def run(argv):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding=request.param)
        with contextlib.redirect_stdout(stdout):
            assert main(argv) == 0
        stdout.flush()
        return stdout.buffer.getvalue().decode(request.param), request.param
    return run


def test_compare_prints_its_table(printed, monkeypatch):
    stored = json.loads((RESULTS / "compare" / "compare.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(compare, "compare", lambda *args: stored)
    monkeypatch.setattr(plot, "compare_pictures", lambda *args: [])
    monkeypatch.setattr("minipeft.cli.compare.check_output", lambda folder: None)
    out, encoding = printed(["compare"])
    assert "\n!=  " in out and ("100+-0" if encoding == "ascii" else "100±0") in out


def test_claims_prints_every_form(printed, monkeypatch):
    chosen = tuple(c for c in claims.CLAIMS if not c.notebook.isascii())
    assert chosen
    monkeypatch.setattr(claims, "CLAIMS", chosen)
    assert "alpha/r, or alpha/sqrt r?" in printed(["claims"])[0]
    assert "alpha/r, or alpha/sqrt r?" in printed(["claims", "--markdown"])[0]


def test_claims_as_json_stays_json(printed, monkeypatch):
    chosen = tuple(c for c in claims.CLAIMS if not c.notebook.isascii())
    monkeypatch.setattr(claims, "CLAIMS", chosen)
    out, _ = printed(["claims", "--json"])
    assert [entry["notebook"] for entry in json.loads(out)] == [c.notebook for c in chosen]


def test_quiz_prints_its_questions(printed, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ny\n" * len(questions())))
    assert "alpha" in printed(["quiz"])[0]


def test_generate_prints_whatever_the_model_says(printed, monkeypatch):
    pytest.importorskip("tokenizers")
    from minipeft.llm import base

    class Tokenizer:
        encode = staticmethod(lambda text: type("Encoding", (), {"ids": [1, 2, 3]}))
        decode = staticmethod(lambda ids: "é中")
        chat_text = staticmethod(lambda messages: "")
        control_words, end_ids = [], [60]
    monkeypatch.setattr(base, "load", lambda *_, **given: (GPT(SMALL).eval(), Tokenizer))
    torch.manual_seed(0)
    out, encoding = printed(["generate", "hello", "--max-new-tokens", "1"])
    assert out.strip() == ("\\xe9\\u4e2d" if encoding == "ascii" else "é\\u4e2d")


def test_what_we_print_has_a_spelling_in_ascii():
    text = "".join(map(str, [*questions(), *claims.CLAIMS]))
    assert {c for c in text if not c.isascii()} <= SPELT.keys()
    assert all(spelling.isascii() for spelling in SPELT.values())
