"""Notebooks executed in place: what is stored, what stays, and what is refused."""
import base64
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from matplotlib.image import imread, imsave

pytest.importorskip("nbclient", reason="it comes with the requirements for notebooks")
from minipeft.__main__ import main
from minipeft.cli import notebooks as command
from minipeft.course import execute as executing
from minipeft.course.execute import execute
from minipeft.files import NOTEBOOKS

PICTURE = ["from io import BytesIO\n", "from IPython.display import Image, display\n",
           "from matplotlib.figure import Figure\n", "data, figure = BytesIO(), Figure((1, 1))\n",
           "figure.subplots().plot([0, 1], color='red')\n", "figure.savefig(data, format='png')\n",
           "print('before')\n", "display(Image(data.getvalue()))\n", "print('after')"]
CLOCK = ["import time\n", "time.perf_counter_ns()"]


def notebook(path, *sources: list[str], **first_metadata):
    """A notebook that was never executed, in the layout of the course's, and with oddities in its
    metadata that are nobody's business."""
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {"odd": 1}, "source": ["# ü\n"]}]
    cells += [{"cell_type": "code", "execution_count": None, "id": f"cell-{i:03}",
               "metadata": first_metadata if i == 1 else {}, "outputs": [], "source": source}
              for i, source in enumerate(sources, start=1)]
    content = {"cells": cells, "metadata": {"language_info": {"name": "python", "version": "3.0"},
                                            "kernelspec": {"display_name": "P", "name": "python3"}},
               "nbformat": 4, "nbformat_minor": 5}
    save(path, content)
    return path


def save(path, content):
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_course_is_stored_in_the_layout_that_execution_writes(path):
    raw = load(path)
    assert executing.with_outputs(raw, load(path), set()) == path.read_text(encoding="utf-8")


def test_a_second_run_changes_no_byte_but_in_what_differs_from_run_to_run(tmp_path):
    two = ["import sys\n", "for word in ('one', 'two'):\n", "    print(word)\n",
           "    sys.stdout.flush()"]
    path = notebook(tmp_path / "n.ipynb", two, PICTURE, CLOCK, execution={"iopub": "now"})
    before = load(path)
    assert execute(path) == ["cell-001", "cell-002", "cell-003"]
    first = load(path)
    assert execute(path) == ["cell-003"]
    second = load(path)
    clocks = [run["cells"][3].pop("outputs") for run in (first, second)]
    assert first == second and clocks[0] != clocks[1]
    assert [cell.get("execution_count") for cell in first["cells"]] == [None, 1, 2, 3]
    assert first["cells"][1]["outputs"] == [
        {"name": "stdout", "output_type": "stream", "text": ["one\n", "two\n"]}]
    assert [output["output_type"] for output in first["cells"][2]["outputs"]] == [
        "stream", "display_data", "stream"]                    # in the order in which they came
    before["cells"][1]["metadata"] = {}                        # but for the clock of JupyterLab
    for cell, old in zip(first["cells"], before["cells"]):
        assert {**cell, "outputs": 0, "execution_count": 0} == {
            **old, "outputs": 0, "execution_count": 0}
    assert first["metadata"] == before["metadata"]


def test_a_figure_stays_as_it_is_stored_until_a_pixel_differs(tmp_path):
    path = notebook(tmp_path / "n.ipynb", PICTURE)
    execute(path)
    stored = load(path)
    data = stored["cells"][1]["outputs"][1]["data"]
    pixels, again = imread(io.BytesIO(base64.b64decode(data["image/png"]))), io.BytesIO()
    imsave(again, pixels, metadata={"Software": "another version"})
    data["image/png"] = base64.b64encode(again.getvalue()).decode()
    save(path, stored)
    assert execute(path) == [] and load(path) == stored        # other bytes, the same pixels
    stored["cells"][1]["source"] = [line.replace("red", "blue") for line in PICTURE]
    save(path, stored)
    assert execute(path) == ["cell-001"]
    assert load(path)["cells"][1]["source"] == stored["cells"][1]["source"]


def test_streams_that_the_kernel_cut_elsewhere_stay_as_they_are_stored(tmp_path):
    path = notebook(tmp_path / "n.ipynb", ["print('one')\n", "print('two')"])
    execute(path)
    stored = load(path)
    stored["cells"][1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": [text]}
                                     for text in ("one\n", "two\n")]
    save(path, stored)
    assert execute(path) == [] and load(path) == stored


@pytest.mark.parametrize("source, metadata, message", [
    (["[][1]"], {}, "raised IndexError: list index out of range"),
    (["[][1]"], {"tags": ["raises-exception"]}, "raised IndexError"),
    (["raise ValueError('first\\nsecond')"], {}, "raised ValueError: first; mend"),
    (["import warnings\n", "warnings.warn('old name')"], {}, "wrote to stderr: .*old name"),
    (["while True: pass"], {}, "took more than 2 seconds"),
    (["import os\n", "os._exit(1)"], {}, "ended the kernel"),
])
def test_what_fails_or_warns_leaves_the_file_as_it_was(source, metadata, message, tmp_path,
                                                       monkeypatch):
    monkeypatch.setattr(executing, "CELL_SECONDS", 2 if "while" in source[0] else 60)
    path = notebook(tmp_path / "n.ipynb", source, ["print('never')"], **metadata)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"^n.ipynb, In \[1\] \(cell-001\) {message}"):
        execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_kernel_that_does_not_start_ends_with_one_line(tmp_path, monkeypatch):
    spec = {"argv": [sys.executable, "-c", "pass"], "display_name": "none", "language": "python"}
    monkeypatch.setattr(executing, "get_kernel_dict", lambda: spec)
    with pytest.raises(ValueError, match=r"^n.ipynb: no kernel \(.*\); try: python -m ipykernel"):
        execute(notebook(tmp_path / "n.ipynb", ["print(1)"]))


@pytest.mark.parametrize("text, message", [
    ("{", "is not a notebook .*; restore it"),
    ("[]", "is not a notebook"),
    ('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}', "4.5, .* got 4.4; save"),
])
def test_a_file_that_is_no_notebook_with_ids_is_refused(text, message, tmp_path):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(ValueError, match=message):
        execute(tmp_path / "n.ipynb")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two notebooks, the second of which fails."""
    monkeypatch.setattr(command, "NOTEBOOKS", tmp_path)
    notebook(tmp_path / "00_good.ipynb", CLOCK, ["1 + 1"])
    notebook(tmp_path / "01_bad.ipynb", ["1 / 0"])
    (tmp_path / "README.md").write_text("| [00 Good](00_good.ipynb) | How good? | 1 min |\n")
    (tmp_path / "timed_cells.json").write_text('{"00_good": ["cell-001"]}')
    return tmp_path


def test_the_command_lists_the_notebooks_with_their_questions(course, capsys):
    assert main(["notebooks"]) == 0
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["00_good.ipynb", "How good?"], ["01_bad.ipynb"]]


def test_the_command_says_which_cells_changed_and_ends_at_the_first_failure(course, capsys):
    assert main(["notebooks", "--execute"]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and out.endswith("s   new output of cell-001 (timed), cell-002\n")
    assert err.splitlines()[-1].endswith("minipeft notebooks: 01_bad.ipynb, In [1] (cell-001) "
                                         "raised ZeroDivisionError: division by zero; mend the "
                                         "cell: the file is as it was")


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a child there")
def test_ctrl_c_leaves_the_file_as_it_was_and_says_one_line(course):
    path = notebook(course / "00_good.ipynb", ["from pathlib import Path\n", "import time\n",
                                               "Path('started').touch()\n", "time.sleep(100)"])
    before = path.read_bytes()
    code = (f"import sys; from pathlib import Path; from minipeft.__main__ import main; "
            f"from minipeft.cli import notebooks; notebooks.NOTEBOOKS = Path({str(course)!r}); "
            f"sys.exit(main(['notebooks', '--execute', '0']))")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
                               preexec_fn=functools.partial(signal.signal, signal.SIGINT,
                                                            signal.SIG_DFL))
    deadline = time.time() + 60
    while not (course / "started").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and err.endswith("\nminipeft notebooks: interrupted\n")
    assert path.read_bytes() == before and not list(course.glob("*.part"))


def test_an_unknown_notebook_is_refused_with_the_known_ones(course, capsys):
    with pytest.raises(SystemExit):
        main(["notebooks", "--execute", "0", "7"])
    assert "unknown notebook '7'; known: 00, 01\n" in capsys.readouterr().err
    for path in course.glob("*.ipynb"):
        path.unlink()
    assert main(["notebooks"]) == 1 and "come with a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["", " ", "-1", "0x0", "../00", "000"])
def test_what_is_no_number_of_a_notebook_executes_none(number, course, capsys, monkeypatch):
    monkeypatch.setattr(command, "execute", lambda *arguments: pytest.fail("it executed one"))
    with pytest.raises(SystemExit) as stop:
        main(["notebooks", "--execute", "--", number])
    assert stop.value.code == 2 and "unknown notebook" in capsys.readouterr().err


@pytest.mark.parametrize("edit, message", [
    (lambda cells: cells[2].pop("id"), "cell 3 has no id"),
    (lambda cells: cells[2].update(id=""), "cell 3 has no id"),
    (lambda cells: cells[2].update(id=None), "cell 3 has no id"),
    (lambda cells: cells[2].update(id=7), "cell 3 has no id"),
    (lambda cells: cells[2].update(id="title"), "cell 3 has the id 'title' of cell 1"),
    (lambda cells: cells[2].update(id="cell-001"), "cell 3 has the id 'cell-001' of cell 2"),
    (lambda cells: cells.append("text"), "cells must be a list of objects")])
def test_a_notebook_whose_cells_cannot_be_told_apart_is_refused(edit, message, tmp_path):
    path = notebook(tmp_path / "n.ipynb", ["print(1)"], ["print(2)"])
    content = load(path)
    edit(content["cells"])
    save(path, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"n.ipynb.*{message}"):
        execute(path)
    assert path.read_bytes() == before


def test_every_notebook_of_the_course_has_its_question():
    assert set(command.questions()) == {path.name for path in NOTEBOOKS.glob("*.ipynb")}
