"""A machine that is not ours: an output that is not UTF-8, a home without room for a cache."""
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL

import minipeft
from minipeft import GPT
from minipeft.__main__ import SPELT, main
from minipeft.course import claims
from minipeft.course.questions import questions
from minipeft.files import RESULTS
from minipeft.lab import compare, plot


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


def test_quiz_prints_its_questions(printed, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ny\n" * len(questions())))
    assert "alpha" in printed(["quiz"])[0]


def test_generate_prints_whatever_the_model_says(printed, monkeypatch):
    pytest.importorskip("tokenizers")
    from minipeft.cli import generate

    class Tokenizer:
        encode = staticmethod(lambda text: type("Encoding", (), {"ids": [1, 2, 3]}))
        decode = staticmethod(lambda ids: "é中")
        token_to_id = staticmethod(lambda word: 60)
    monkeypatch.setattr(generate, "load", lambda: (GPT(SMALL).eval(), Tokenizer))
    torch.manual_seed(0)
    out, encoding = printed(["generate", "hello", "--max-new-tokens", "1"])
    assert out.strip() == ("\\xe9\\u4e2d" if encoding == "ascii" else "é\\u4e2d")


def test_what_we_print_has_a_spelling_in_ascii():
    text = "".join(map(str, [*questions(), *claims.CLAIMS]))
    assert {c for c in text if not c.isascii()} <= SPELT.keys()
    assert all(spelling.isascii() for spelling in SPELT.values())
