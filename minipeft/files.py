"""Files: where the data lie, one way to write, one reader of JSON and one of safetensors.

Whatever a file holds, a reader gives what was wanted or raises one line that names the file, what
was wanted, what was got, and what to do. It allocates in proportion to the file's size, and never
what a number in the file asks for.
"""
import codecs
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = Path(__file__).parent
CHECKOUT = PACKAGE.parent
IN_WHEEL = (PACKAGE / "data").is_dir()      # pyproject.toml puts it there; a checkout has data/
DATA = PACKAGE / "data" if IN_WHEEL else CHECKOUT / "data"
NOTEBOOKS = CHECKOUT / "notebooks"          # not in a wheel
# of the reference runs
RESULTS = PACKAGE / "results" if IN_WHEEL else CHECKOUT / "benchmarks" / "results"

DEPTH = 64                  # lists and objects within each other; Python's own readers end at 1000
LARGEST = 2**63 - 1         # whole number that a tensor can hold
NO_LIMIT = 10.0**30         # a text's length in a tokenizer_config.json of transformers
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false",
         int: "a whole number", float: "a number", type(None): "null"}


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
    """ValueError, with the file as it was, for NaN and infinity, which JSON does not have."""
    write_text(path, to_json(content, path, indent=1) + "\n")


def to_json(content, path: Path, indent: int | None = None) -> str:
    """For `path`; ValueError for NaN and infinity."""
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        raise ValueError(f"{path} is not written: a number in it is NaN or infinite, and JSON has "
                         f"neither") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, for use inside `replacing`; OSError if the disk does not take it."""
    tensors = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None


# ---------------------------------------------------------------- reading


def read_json(path: Path, do: str = "restore it", wanted: type = dict, keys: dict | None = None):
    """What is in a file, as `parse_json` takes it."""
    return parse_json(path.read_bytes(), str(path), do, wanted, keys)


def parse_json(content: bytes, where: str, do: str, wanted: type = dict, keys: dict | None = None):
    """The object (or list) in UTF-8 JSON, with the `keys` that check_keys wants (of a list, each
    entry).

    ValueError, which says `where` and what to `do`, for another encoding, another kind, a key that
    stands twice, numbers that no tensor can hold, and lists deeper than DEPTH.
    """
    try:
        text = decoded(content)
        found = json.loads(text, object_pairs_hook=without_doubles, parse_int=whole,
                           parse_float=finite, parse_constant=finite)
        check_depth(found)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()      # half of a surrogate pair
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        problem = f"{error.msg} at {line}column {error.colno}" if text.strip() else "it is empty"
        raise ValueError(f"{where} is not valid JSON: {problem}; {do}") from None
    except RecursionError:
        raise ValueError(f"{where} is not valid JSON: nested deeper than {DEPTH}; {do}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}; {do}") from None
    if not isinstance(found, wanted):
        raise ValueError(f"{where} must hold {KINDS[wanted]}, got {type(found).__name__}; {do}")
    for number, entry in enumerate(found if wanted is list else [found], start=1):
        if keys is not None:
            check_keys(entry, keys, where + f", entry {number}" * (wanted is list), do)
    return found


def check_keys(entries: dict, keys: dict, where: str, do: str, others: bool = True) -> None:
    """ValueError unless `entries` has every one of `keys`, each of its type.

    keys: {"name": str, "size": (int, NoneType), "data": {the keys of an object}}
    others: whether further keys may stand beside them
    """
    if not isinstance(entries, dict):
        raise ValueError(f"{where} must be an object, got {short(entries)}; {do}")
    missing = [key for key in keys if key not in entries]
    if missing:
        there = plain(", ".join(entries)) if entries else "nothing"
        raise ValueError(f"{where} lacks {', '.join(missing)}; it has {there}; {do}")
    unknown = [key for key in entries if key not in keys]
    if unknown and not others:
        raise ValueError(f"{where} has the unknown key {plain(unknown[0])}; {do}")
    for key, kinds in keys.items():
        if isinstance(kinds, dict):
            check_keys(entries[key], kinds, f"{where}: {key}", do)
            continue
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(entries[key]) not in kinds:       # isinstance would take true for a whole number
            raise ValueError(f"{where}: {key} must be {' or '.join(KINDS[k] for k in kinds)}, got "
                             f"{short(entries[key])}; {do}")


def decoded(content: bytes) -> str:
    """ValueError, which names the line, unless it is UTF-8; a byte order mark is no fault."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError("it must be UTF-8 without zero bytes, and looks like UTF-16; save it as "
                         "UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f" in line {line}" if b"\n" in content.strip() else ""
        raise ValueError(f"it must be UTF-8, got the byte 0x{content[error.start]:02x}{place}; "
                         f"save it as UTF-8") from None


def without_doubles(pairs: list[tuple]) -> dict:
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {plain(key)} stands twice in one object")
        found[key] = value
    return found


def whole(digits: str) -> int | float:
    if digits == str(int(NO_LIMIT)):
        return NO_LIMIT                     # a number that is no whole one: no size takes it
    if len(digits) > 20 or abs(int(digits)) > LARGEST:       # int() of many digits takes long
        raise ValueError(f"the number {plain(digits)} is larger than {LARGEST}")
    return int(digits)


def finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {plain(digits)} is not finite")
    return value


def check_depth(content) -> None:
    level = [content]
    for _ in range(DEPTH + 1):
        level = [value for value in level if isinstance(value, (dict, list))]
        if not level:
            return
        level = [entry for value in level
                 for entry in (value.values() if isinstance(value, dict) else value)]
    raise RecursionError


def short(value, repr=repr) -> str:
    """A value for a message of one line, cut where it is long."""
    text = " ".join(repr(value).splitlines())            # numpy's has several
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(name: str) -> str:
    """A name from a file, for a message of one line."""
    return short(name, repr=lambda name: repr(name)[1:-1])


@contextmanager
def opened_tensors(path: Path, do: str) -> Iterator[safe_open]:
    """A safetensors file whose tensors are read one at a time; ValueError, which says what to `do`,
    if it is none. The library checks every size in it against the file's."""
    path.open("rb").close()          # a folder, say: the library's own errors name no file
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: truncated or no safetensors file ({error}); "
                         f"{do}") from None


def read_tensors(path: Path, do: str = "restore it") -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, as `opened_tensors` takes it."""
    with opened_tensors(path, do) as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, {} if metadata is None else metadata
