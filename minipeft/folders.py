"""Folders that commands write into: tried before any work, and one process's alone."""
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:                 # Windows
    fcntl = None


OUTPUTS = (".json", ".jsonl", ".png", ".safetensors")        # of all commands


def check_writable(folder: Path, do: str = "name another folder with --out") -> None:
    """OSError, which says what to `do`, unless files can be written into `folder`, which need not
    exist yet.

    Tried by making it and writing a byte (a full disk has room for an empty file); both are undone.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out must be a folder, but {folder} is a file")
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix in OUTPUTS and path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a file of such a name may have to "
                                    f"be written; move it away, or {do}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
    except OSError as error:
        raise OSError(f"nothing can be written into {folder} ({error.strerror}); {do}") from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
        remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that hold nothing."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Inside, no other process is inside for the same folder; ValueError if one is, or `wait`.

    The lock is the operating system's: it ends with the process, however that ends.
    """
    handle = lock(folder)
    while handle is None:
        if not wait:
            raise ValueError(f"another process is at work in {folder}; wait for its end, or name "
                             f"another folder with --out")
        time.sleep(0.1)
        handle = lock(folder)
    try:
        yield
    finally:
        os.close(handle)


def lock(folder: Path) -> int | None:
    """A handle that holds the lock until it is closed, None if another holds it."""
    if fcntl is None:               # on Windows a file, which it deletes with its handle
        try:
            return os.open(folder / ".lock", os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)
        except FileExistsError:
            return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:                 # a file system without locks: some that come over a network
        pass
    return handle
