"""The house rules that a program can check."""
import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import parts
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipeft"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The house. An import goes down to a lower row, or inside a room to a file named before it.
FLOORS = """
adapter  gpt  train  files  folders
hf_names
lora  prompt  prefix  houlsby  nf4  measure  figures
adapter_file  state
peft_model
recipes  tiny_world
llm
lab
course
cli
__main__
"""
ROOMS = {"nf4": "reference state cpu gpu dispatch linear __init__",
         "tiny_world": "__init__ grammar village documents languages tasks pretrain",
         "llm": "gguf hf_config gguf_model chat smollm2 chat_template tokenizer checkpoint "
                "base shared_prefix run_files finetune __init__",
         "lab": "__init__ sources memory study runs rates graded capacity intervals "
                "compare summary plot tool_calls tool_calls_plot diagrams turns bench_layer "
                "bench_nf4 bench_step bench_decode",
         "course": "__init__ notebook questions boxes cards execute exercises assignment student "
                   "grade claims explore site",
         "claims": "claim counts computed measured observed table report __init__",
         "explore": "runs rates levels page __init__",
         "cli": "__init__"}
OPTIONAL = {"triton": {"gpu"}, "tokenizers": {"gguf_model", "tokenizer"},
            "jinja2": {"chat_template"}, "transformers": {"bench_step"},
            "peft": {"bench_step"}, "bitsandbytes": {"bench_layer", "bench_nf4", "bench_step"},
            "nbclient": {"execute"}, "nbformat": {"execute", "student"},
            "jupyter_client": {"execute"}, "ipykernel": {"execute"}, "nbgrader": {"student"},
            "genanki": {"cards"}, "plotly": {"page"}, "sphinx": {"site"}}


def module_of(path: Path) -> tuple[str, ...]:
    """("lora",), ("nf4", "cpu"), ("course", "claims", "table"), ..."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def imports(path: Path) -> tuple[set[tuple[str, ...]], set[str]]:
    """What a file imports of the package, as module_of names it, and of the world."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            here = module_of(path)[:-node.level] + tuple((node.module or "").split("."))
            base = tuple(part for part in here if part)
            inside |= {module(base, alias.name) for alias in node.names}
    return inside, outside


def module(base: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Where `from base import name` leads: to a file, or to the door of a room."""
    folder = PACKAGE.joinpath(*base)
    if (folder / f"{name}.py").exists():
        return (*base, name)
    if (folder / name).is_dir():
        return (*base, name, "__init__")
    return base if folder.with_suffix(".py").exists() else (*base, "__init__")


def place(rows: str, name: str) -> int:
    """On which floor, or how far along its room, a name stands; rooms have one file a place."""
    places = rows.strip().splitlines() if "\n" in rows else rows.split()
    found = [i for i, row in enumerate(places) if name in row.split()]
    assert len(found) == 1, f"{name} has no place in FLOORS or ROOMS, or two: give it one"
    return found[0]


def is_below(other: tuple[str, ...], own: tuple[str, ...]) -> bool:
    """Whether `own` may import `other`."""
    for depth, (theirs, ours) in enumerate(zip(other, own)):
        if theirs != ours:
            if depth == 0:
                return place(FLOORS, theirs) < place(FLOORS, ours)
            rows = ROOMS[own[depth - 1]]
            return theirs in rows.split() and (ours not in rows.split()
                                               or place(rows, theirs) < place(rows, ours))
    raise AssertionError(f"{own} imports itself")


def test_every_file_has_its_place_in_the_house():
    for path in SOURCES:
        own = module_of(path)
        assert own == ("__init__",) or place(FLOORS, own[0]) >= 0
        assert len(own) == 1 or own[0] == "cli" or place(ROOMS[own[-2]], own[-1]) >= 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_and_never_sideways_into_another_method(path):
    own, (inside, outside) = module_of(path), imports(path)
    assert "minipeft" not in outside, "write it relative: lab/sources.py follows those alone"
    if own != ("__init__",):
        for other in inside:
            assert is_below(other, own), f"{'.'.join(own)} imports {'.'.join(other)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_below_the_command_line_nothing_prints_or_parses_arguments(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and getattr(node.func, "id", "") == "print"]
    if module_of(path)[0] in ("cli", "__main__") or path.stem == "notebook":
        return
    assert "argparse" not in imports(path)[1]
    assert len(calls) == (1 if path.name == "peft_model.py" else 0)   # print_trainable_parameters


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_in_one_module_and_no_error_is_swallowed(path):
    for name in imports(path)[1] & OPTIONAL.keys():
        assert path.stem in OPTIONAL[name], f"{path.name} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else getattr(node.type, "id", "other")
            # what an answer raises, and the library tokenizers
            theirs = path.stem in ("exercises", "tokenizer") and caught == "Exception"
            assert theirs or caught not in ("", "Exception", "BaseException"), (
                f"{path.name}:{node.lineno} catches everything")


def is_true_or_false(node: ast.expr) -> bool:
    """Whether an expression can be nothing else, as far as its form tells."""
    call = node.func if isinstance(node, ast.Call) else None
    name = getattr(call, "id", getattr(call, "attr", ""))
    return (isinstance(node, ast.Compare | ast.BoolOp)
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
            or name in ("isinstance", "hasattr", "any", "all", "is_dir", "exists", "startswith"))


def defaults(source: str) -> list[str]:
    """Every `x or y` of a source whose value is x or y, and not only whether one holds."""
    tree, asked = ast.parse(source), set()
    for node in ast.walk(tree):
        for test in [getattr(node, "test", None), *getattr(node, "ifs", []),
                     getattr(node, "operand", None)]:
            asked |= {id(part) for part in ast.walk(test)} if test is not None else set()
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("any", "all"):
            asked |= {id(part) for part in ast.walk(node)}
    return [ast.unparse(node) for node in ast.walk(tree)
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)
            and id(node) not in asked and not is_true_or_false(node.values[0])
            and ".append(" not in ast.unparse(node.values[0])]      # gives None: "and then"


def test_what_is_a_default_and_what_is_a_condition():
    assert set(defaults("f(x or 1)\ny = a.b or []\nreturn x() or 'none'")) == {
        "x or 1", "a.b or []", "x() or 'none'"}
    assert defaults("if a or b: pass\nc = d > 1 or e\nf = not (g or h)\nany(i or j for i in k)\n"
                    "l = [m for m in n if m or o]") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_zero_is_a_value_so_no_default_is_written_with_or(path):
    assert defaults(path.read_text(encoding="utf-8")) == [], "write: y if x is None else x"


# Who else may open JSON or safetensors: json.loads of what a process of ours has just printed or
# made, files under a checksum
READERS = {"files.py": {"loads", "safe_open"}, "bench_step.py": {"loads"},
           "bench_decode.py": {"loads"}, "execute.py": {"loads"},
           "pretrain.py": {"safetensors.load"}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_one_function_reads_every_json_and_one_every_safetensors(path):
    """json.load(s), torch.load, safe_open, and safetensors' load and load_file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors"):
            found |= {f"safetensors.{a.name}" for a in node.names if a.name.startswith("load")}
            found |= {a.name for a in node.names if a.name == "safe_open"}
        elif isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "safe_open"):
            if getattr(node.value, "id", "") in ("json", "torch", "pickle", "np", "safetensors"):
                found.add(node.attr)
    assert found <= READERS.get(path.name, set()), f"{path.name}: call the readers of files"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_promise_hangs_on_assert(path):
    """python -O leaves them out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.lineno + 1
            doc = ast.get_docstring(node, clean=False)
            lines = body - (doc.count("\n") + 1 if doc else 0)
            assert lines <= 30, f"{path.name}: {node.name} has {lines} lines without its docstring"


def test_the_linter_is_content():
    pytest.importorskip("ruff", reason="it comes with the test requirements")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_parts_of_a_run_are_its_notebooks_ten_files_and_the_rest():
    seconds = Counter({f"tests/test_{n:02}.py": n for n in range(1, 13)}
                      | {"notebooks/b.ipynb": 30, "notebooks/a.ipynb": 20})
    assert parts(seconds) == [(20, "notebooks/a.ipynb"), (30, "notebooks/b.ipynb"),
                              *((n, f"tests/test_{n:02}.py") for n in range(12, 2, -1)),
                              (1 + 2, "2 other test files"), (50, "all notebooks"),
                              (78, "all test files"), (128, "total")]


def test_the_budgets_of_the_tests_add_up_to_20_and_60_minutes():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"\| part \| budget, minutes .*?\n\n", text, flags=re.DOTALL)[0]
    rows = re.findall(r"(?m)^\| (.*?) \| \**(\d+)", table)
    test, whole = (rows.index((name, total)) for name, total in
                   (("**`make test`**", "20"), ("**`make test-all`**", "60")))
    assert sum(int(n) for _, n in rows[:test]) == 20
    assert sum(int(n) for _, n in rows[test:whole]) == 60 and whole == len(rows) - 1


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


def test_every_pin_is_exact_and_within_the_range_that_pyproject_states():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for group in
              (project["dependencies"], *extras.values()) for text in group]
    for requirement in wanted:
        (pin,) = pins()[requirement.name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), requirement
    assert {requirement.name for requirement in wanted} == set(pins())


def test_conda_users_get_the_pins_of_requirements_txt():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^\s*- (.*)$", text, flags=re.MULTILINE)
    assert "-r requirements.txt" in entries and "-e ." in entries
    assert [entry for entry in entries if "==" in entry] == [], "a pin stands in one place"
    assert "python=3.11" in entries


def test_continuous_integration_runs_what_the_readme_names_and_make_test_first():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make test-all"]
    assert "`make test-all`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\ntest-all: test\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_target_of_the_makefile_has_its_plain_form_in_the_readme():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in
                        ("README.md", "Makefile"))
    targets = re.findall(r"(?m)^([\w-]+):.*\n\t\$\(RUN\) (.*?)(?: \$\(ARGS\))?$", makefile)
    assert {"compare", "test", "test-all", "lab"} <= {name for name, _ in targets}
    for name, command in targets:
        assert re.search(rf"(?m)^python {re.escape(command)} +# make {name}(?![\w-])", readme), name
