"""Files: where the data lie, the one way to write, the one way to read JSON."""
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent
IN_WHEEL = (PACKAGE / "data").is_dir()      # pyproject.toml puts it there; a checkout has data/
DATA = PACKAGE / "data" if IN_WHEEL else CHECKOUT / "data"
NOTEBOOKS = CHECKOUT / "notebooks"          # not in a wheel
# of the reference runs
RESULTS = PACKAGE / "results" if IN_WHEEL else CHECKOUT / "benchmarks" / "results"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for the block to write: its file then takes the place of
    `path`, whole, with the mode that the umask says; if the block raises, it is removed. One
    writer of a file in a process."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.touch()
    mode = part.stat().st_mode & 0o777             # safetensors would leave 0600
    try:
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, for use inside `replacing`; OSError if the disk does not take it."""
    tensors = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None


def read_json(path: Path, do: str = "restore it", wanted: type = dict):
    """The object (or list) in a file; ValueError, which says what to `do`, if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))       # a BOM is no fault
    except ValueError as error:                    # not JSON, or not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}; {do}") from None
    if not isinstance(content, wanted):
        kind = {dict: "an object", list: "a list"}[wanted]
        raise ValueError(f"{path} must hold {kind}, got {type(content).__name__}; {do}")
    return content
