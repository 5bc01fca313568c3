"""The command line: usage, exit status, one-line errors."""
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minipeft.__main__ import main, parser
from minipeft.cli import COMMANDS

PAGES = "".join((Path(__file__).parent.parent / name).read_text(encoding="utf-8")
                for name in ("README.md", "CONTRIBUTING.md", "notebooks/TEACHING.md"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_text_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    example = re.search(r"example:  python -m minipeft (.*)", capsys.readouterr().out).group(1)
    assert example.split()[0] == command
    parser(example.split()).parse_args(example.split())


@pytest.mark.parametrize("line", re.findall(r"^ *python -m minipeft (.*?)(?: +#.*)?$", PAGES,
                                            flags=re.MULTILINE)
                         + re.findall(r"`python -m minipeft ([^`>]*)", PAGES))
def test_the_commands_of_the_pages_parse(line):
    argv = shlex.split(line)
    assert argv[0] in COMMANDS
    parser(argv).parse_args(argv)


@pytest.mark.parametrize("argv, message", [
    ([], "{compare,capacity,pretrain,finetune,generate,merge,memory,claims,quiz,"),
    (["course"], "{student,source,solution,progress,explore,grade,site}"),
    (["finetune", "--out", "x", "--metod", "lora"], "usage: minipeft finetune [-h] --out OUT"),
    (["finetune", "--out", "x", "--metod", "lora"], "unrecognized arguments: --metod lora"),
    (["course", "progress", "x", "--job", "2", "--sekonds", "9"],
     "usage: minipeft course progress [-h]"),
    (["--nosuch", "compare"], "unrecognized arguments: --nosuch"),
    (["conpare"], "invalid choice: 'conpare'"),
    (["compare", "--methods", "lora", "nosuch"], "unknown method 'nosuch'; known: full, lora"),
    (["compare", "--tasks", "summarize"],
     "unknown task 'summarize'; known: elicit, novel, languages"),
    (["compare", "--seeds", "0"], "must be a whole number, at least 1"),
    (["compare", "--seeds", "two"], "a whole number, at least 1, got 'two'"),
    (["compare", "--sweep", "--seeds", "2"], "a sweep has its own seeds, 100, 101, 102"),
    (["memory", "--model", "tiny", "--gpu", "inf"], "must be a positive number of GiB, got inf"),
    (["compare", "--out", __file__], "--out must be a folder"),
    (["pretrain", "--steps", "0"], "--steps must be at least 1"),
])
def test_wrong_usage_ends_with_status_2_and_says_what_was_wanted(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_python_without_the_requirements_is_told_in_one_line_what_to_activate():
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-S", "-m", "minipeft", "compare"], capture_output=True,
                          text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "minipeft needs torch" in done.stderr and ". .venv/bin/activate" in done.stderr


def test_comparing_needs_the_core_requirements_only():
    code = ("import sys; from minipeft.__main__ import parser; parser(['compare']); "
            "print(*sorted({name.split('.')[0] for name in sys.modules}))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "minipeft" in out.split()
    assert not {"transformers", "peft", "bitsandbytes", "tokenizers", "IPython"} & set(out.split())


def test_a_failure_ends_with_status_1_and_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("minipeft.lab.rates.LEARNING_RATES", tmp_path / "none.json")
    assert main(["compare", "--quick", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no sweep at" in err and "compare --sweep" in err
