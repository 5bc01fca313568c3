"""Execute a notebook in place: what came out anew is stored, and nothing else in the file moves.

    changed = execute(path)        # the ids of the cells that have another output now

The outputs of a cell stay as they are stored if the new ones say the same: equal text, and figures
with equal pixels (the bytes of a PNG also depend on the versions of matplotlib and zlib). So a
second run changes no byte, but for timings and figures that show one. If a cell raises, or writes
to stderr, nothing is stored at all.
"""
import base64
import copy
import io
import json
import logging
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.image import imread

from ..files import parse_json, write_text
from ..folders import check_writable

try:
    import nbformat
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
except ImportError as error:
    raise ImportError("executing notebooks needs nbclient and ipykernel; install them with: "
                      "pip install jupyterlab ipykernel") from error

CELL_SECONDS = 120        # as in the tests: --nbval-cell-timeout in pyproject.toml


class ThisPython(AsyncKernelManager):
    """Starts kernels under the interpreter and in the environment of this program, as nbval does;
    what is installed on a machine under the name python3 may be another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(path: Path, progress: Callable[[Iterable], Iterable] = iter) -> list[str]:
    """Run all cells in the notebook's folder and store what is new; ids of the changed cells.

    OSError if nothing can be written there; ValueError, with the file as it was, if a cell raises,
    writes to stderr, takes too long, or ends the kernel.
    """
    check_writable(path.parent, "make that folder writable, or work on a copy of the notebooks")
    text = path.read_text(encoding="utf-8")
    raw = read(path, text)
    stored = nbformat.reads(text, as_version=4)
    fresh = copy.deepcopy(stored)
    run_cells(fresh, path, progress)
    changed = [new.id for old, new in zip(stored.cells, fresh.cells)
               if comparable(old) != comparable(new)]
    new_text = with_outputs(raw, json.loads(nbformat.writes(fresh)), set(changed))
    if new_text != text:
        write_text(path, new_text)
    return changed


def read(path: Path, text: str) -> dict:
    """The notebook's JSON as it stands in the file; ValueError if it is none with cell ids."""
    raw = parse_json(text.encode(), f"{path} is not a notebook because it", "restore it",
                     keys={"nbformat": int, "nbformat_minor": int, "cells": list})
    version = raw["nbformat"], raw["nbformat_minor"]
    if not (4, 5) <= version < (5, 0):
        raise ValueError(f"{path} must be in nbformat 4.5, whose cells have ids, got "
                         f"{version[0]}.{version[1]}; save it with JupyterLab 4")
    check_ids(raw["cells"], path)
    return raw


def check_ids(cells: list, path: Path) -> None:
    """ValueError unless every cell has an id of its own: by it its outputs find their place."""
    if not all(isinstance(cell, dict) for cell in cells):
        raise ValueError(f"{path} is not a notebook (cells must be a list of objects); restore it")
    ids = [cell.get("id") for cell in cells]
    for number, name in enumerate(ids, start=1):
        named = isinstance(name, str) and name != ""
        if not named or ids.index(name) != number - 1:
            first = f"the id {name!r} of cell {ids.index(name) + 1}" if named else "no id"
            raise ValueError(f"{path}: every cell must have an id of its own, but cell {number} "
                             f"has {first}; save it with JupyterLab 4")


def run_cells(notebook: nbformat.NotebookNode, path: Path, progress) -> None:
    """Execute the code cells in turn; ValueError says which one failed, and how."""
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_manager_class=ThisPython,
                            force_raise_errors=True, record_timing=False)
    code = [(i, cell) for i, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()]
    try:
        with client.setup_kernel(cwd=str(path.parent), stderr=subprocess.DEVNULL):   # its own log
            for count, (index, cell) in enumerate(progress(code), start=1):
                failure = run_cell(client, cell, index, count)
                if failure:
                    raise ValueError(f"{path.name}, In [{count}] ({cell.id}) {failure}; mend the "
                                     f"cell: the file is as it was")
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True       # it would report the unfinished cell
        raise
    except RuntimeError as error:
        raise ValueError(f"{path.name}: no kernel ({error}); try: "
                         f"python -m ipykernel_launcher --version") from None


def run_cell(client: NotebookClient, cell: nbformat.NotebookNode, index: int, count: int) -> str:
    """What forbids to store the cell's output, in a line; empty if nothing does."""
    try:
        client.execute_cell(cell, index, execution_count=count)
    except CellExecutionError as error:
        return one_line(f"raised {error.ename}: {error.evalue}")
    except CellTimeoutError:
        return f"took more than {CELL_SECONDS} seconds"
    except DeadKernelError:
        return "ended the kernel"
    cell.outputs = merged(cell.outputs)
    warned = [output.text for output in cell.outputs if output.get("name") == "stderr"]
    return one_line(f"wrote to stderr: {warned[0].strip()}") if warned else ""


def one_line(text: str) -> str:
    return text.splitlines()[0]


def merged(outputs: list) -> list:
    """Prints in a row as one output: into how many the kernel cuts them is chance."""
    result = []
    for output in outputs:
        before = result[-1] if result else {}
        if output.output_type == "stream" and output.name == before.get("name"):
            before.text += output.text
        else:
            result.append(copy.deepcopy(output))
    return result


def comparable(cell: nbformat.NotebookNode) -> list:
    """What must be equal if the stored outputs are to stay: everything, but pixels for a PNG."""
    outputs = merged(cell.get("outputs", []))
    for output in outputs:
        if "image/png" in output.get("data", {}):
            pixels = imread(io.BytesIO(base64.b64decode(output.data["image/png"])), format="png")
            output.data["image/png"] = (pixels.shape, pixels.tobytes())
    return outputs


def with_outputs(raw: dict, executed: dict, changed: set[str]) -> str:
    """The notebook's file with the new outputs of the changed cells; all else is that of `raw`."""
    for cell, new in zip(raw["cells"], executed["cells"]):
        cell["metadata"].pop("execution", None)            # JupyterLab's clock
        if cell["cell_type"] == "code":
            cell["execution_count"] = new["execution_count"]
            if cell["id"] in changed:
                cell["outputs"] = new["outputs"]
    return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"
