"""What strict nbval cannot see: a notebook without outputs would pass it."""
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
VERDICTS = 3        # lines that end in True, False, yes, no or ok, in all notebooks, at most
# Cells whose output is a timing of this machine: the only ones whose output is not compared.
TIMED = json.loads((FOLDER / "timed_cells.json").read_text(encoding="utf-8"))


def cells(path: Path, kind: str = "code") -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]
            if cell["cell_type"] == kind]


def outputs(cell: dict) -> str:
    return json.dumps(cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_code_cell_was_executed_in_order(path):
    assert [cell["execution_count"] for cell in cells(path)] == list(
        range(1, len(cells(path)) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_failed_warned_or_printed_a_path(path):
    for cell in cells(path):
        assert not any(o["output_type"] == "error" for o in cell["outputs"]), cell["source"]
        assert not any(o.get("name") == "stderr" for o in cell["outputs"]), cell["source"]
        text = re.sub(r'"image/png": "[^"]*"', "", outputs(cell)) + cell["source"]
        assert not re.search(r"/(home|root|tmp|work|Users|usr)/|[A-Z]:\\\\", text), cell["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_is_there_to_be_seen(path):
    for data in (o["data"] for cell in cells(path) for o in cell["outputs"] if "data" in o):
        assert "image/png" in data or "<Figure" not in "".join(data["text/plain"]), data


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_and_none_ends_in_a_semicolon(path):
    for cell in cells(path):
        code = re.sub(r"(?m)^\s*#.*$", "", cell["source"]).rstrip()
        assert not code.endswith(";"), cell["source"]
        assert len(cell["source"].splitlines()) <= 15, cell["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_only_the_listed_timing_cells_are_not_compared(path):
    marked = [cell["id"] for cell in cells(path)
              if "nbval-ignore-output" in cell["metadata"].get("tags", [])]
    assert marked == TIMED.get(path.stem, [])
    for cell in cells(path):
        assert not re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell["source"]), cell["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_explain_predict_and_end_with_exercises(path):
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    code = "\n".join(cell["source"] for cell in cells(path))
    assert len(cells(path, "markdown")) >= 1.05 * len(cells(path))
    assert "Before you run" in text and "<details>" in text
    assert 3 <= code.count("### BEGIN SOLUTION") == code.count("### END SOLUTION") <= 5


def test_cells_print_values_rather_than_verdicts():
    texts = ["".join(o["text"]) for path in NOTEBOOKS for cell in cells(path)
             for o in cell["outputs"] if "text" in o]
    verdicts = [line for text in texts for line in text.splitlines()
                if re.search(r"\b(True|False|yes|no|ok)\s*$", line)]
    assert len(verdicts) <= VERDICTS, verdicts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_value_that_is_not_compared_has_a_bound(path):
    """A number behind "~" is masked (sanitize.cfg): an assert, or `measured`, holds it."""
    for cell in cells(path):
        if any(re.search(r"~[-+.\d]", "".join(o.get("text", ""))) for o in cell["outputs"]):
            assert re.search(r"\bassert\b|\bmeasured\(|\bcheck\(", cell["source"]), cell["source"]
