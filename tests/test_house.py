"""The house rules that a program can check."""
import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipeft"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# An import goes down: to a lower floor, or to an earlier name on the same line of ORDER.
ORDER = [
    ["gpt", "adapter", "nf4", "grammar", "village", "world", "gguf"],
    ["lora"], ["prompt"], ["prefix"], ["houlsby"], ["adapter_file"],
    ["peft_model"], ["train", "measure", "chat", "run_files", "shared_prefix"],
    ["pretrain", "smollm2", "memory", "bench_nf4", "finetune"],
    ["compare", "bench_step"], ["summary", "plot", "notebook", "claims", "questions"],
    ["cli"], ["__main__"],
]
SAME_FLOOR = [{"lora", "prompt", "prefix", "houlsby", "adapter_file"}]     # rows that are one floor
OPTIONAL = {"triton": {"nf4"}, "tokenizers": {"smollm2"}, "transformers": {"bench_step"},
            "peft": {"bench_step"}, "bitsandbytes": {"bench_nf4", "bench_step"}}


def module_of(path: Path) -> str:
    """The part of the package a file belongs to: "lora", "nf4", "cli", ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """What a file imports: ".lora" of the package, "torch" of the world; TYPE hints included."""
    depth = len(path.relative_to(PACKAGE).parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names |= {"." + (node.module or alias.name).split(".")[0] for alias in node.names}
    return names


def height(module: str) -> tuple[int, int]:
    (row,) = (i for i, names in enumerate(ORDER) if module in names)
    return row, ORDER[row].index(module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_and_never_sideways_into_another_method(path):
    own = module_of(path)
    if own == "__init__":
        return
    for name in (n[1:] for n in imports(path) if n.startswith(".")):
        if name == own:
            continue
        assert height(name) < height(own), f"{own} imports {name}, which stands above it"
        assert not any({name, own} <= floor for floor in SAME_FLOOR), f"{own} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_below_the_command_line_nothing_prints_or_parses_arguments(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and getattr(node.func, "id", "") == "print"]
    if module_of(path) in ("cli", "__main__", "notebook"):
        return
    assert "argparse" not in imports(path)
    assert len(calls) == (1 if path.name == "peft_model.py" else 0)   # print_trainable_parameters


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_in_one_module_and_no_error_is_swallowed(path):
    for name in imports(path) & OPTIONAL.keys():
        assert module_of(path) in OPTIONAL[name], f"{path.name} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and getattr(node.type, "id", "") not in (
                "Exception", "BaseException"), f"{path.name}:{node.lineno} catches everything"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_lines_are_short_and_functions_fit_on_a_screen(path):
    text = path.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines()), default=0) <= 100
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.lineno + 1
            doc = ast.get_docstring(node, clean=False)
            lines = body - (doc.count("\n") + 1 if doc else 0)
            assert lines <= 30, f"{path.name}: {node.name} has {lines} lines without its docstring"


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


def test_continuous_integration_runs_the_command_that_the_readme_names():
    command = "make test"
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
