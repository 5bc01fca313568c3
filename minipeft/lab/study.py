"""A long study: every finished run is a line of JSON in one file, appended as it comes.

    records = run_study(jobs, run, path, version=1, workers=2)

    with Runs(run, path, version=1, workers=2) as runs:     where the next run depends on the last
        runs.chains(follow, starts)                         follow(start) calls runs(job), again

A line holds the job, what came out, and the version of the study. The version is raised by hand
when a run would mean something else; the source is not hashed, for a comment must not undo hours.
An interrupted study goes on where it stopped. Lines of another version are named, never mixed.
"""
import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch

from ..files import check_keys, parse_json, to_json

DO = "delete that line, and the run is done again"
Progress = Callable[..., Iterable]              # as tqdm: (iterable, total=, desc=)


def start_worker() -> None:
    """One thread a process, and no denormals, before the first tensor operation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C is the parent's to answer
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


def in_processes(call: Callable, inputs: list, workers: int, progress: Progress | None,
                 desc: str = "runs") -> Iterable:
    """What `call` gives for each input, as it comes, from processes of one thread each."""
    if inputs:
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(workers, len(inputs)), start_worker) as pool:
            results = pool.imap_unordered(call, inputs)
            yield from progress(results, total=len(inputs), desc=desc) if progress else results


def read_lines(path: Path, version: int, keys: dict) -> dict[str, dict]:
    """The finished runs of a study's file, by job; ValueError for a line that is none of this
    version, or lacks one of the `keys` (see files.py)."""
    found = {}
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number} is no run of a study: it"
        record = parse_json(line, where, DO, keys={"job": {}, "version": int})
        job, of = record["job"], record["version"]
        if of != version:
            raise ValueError(f"{path}, line {number} is of version {of} of this study, which is "
                             f"now at {version}; move the file away, and begin anew")
        check_keys(record, keys, where, DO)
        found[key_of(job)] = record
    return found


def key_of(job: dict) -> str:
    return json.dumps(job, sort_keys=True)


def run_study(jobs: list, run: Callable, path: Path, version: int, workers: int,
              progress: Progress | None = None, desc: str = "runs",
              keys: dict | None = None) -> list[dict]:
    """The records of all jobs (dataclasses), in order; those in the file are not done again.

    run: job -> dict, at the top of a module, since other processes import it
    keys: what such a dict must hold, see files.py
    """
    done = read_lines(path, version, {} if keys is None else keys)
    missing = [job for job in jobs if key_of(asdict(job)) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for job, found in in_processes(Both(run), missing, workers, progress, desc):
            record = {"version": version, "job": asdict(job), **found}
            done[key_of(asdict(job))] = record
            file.write(to_json(record, path) + "\n")
            file.flush()
    return [done[key_of(asdict(job))] for job in jobs]


class Both:
    """job -> (job, run(job)): results arrive in any order."""

    def __init__(self, run: Callable):
        self.run = run

    def __call__(self, job) -> tuple:
        return job, self.run(job)


class Runs:
    """A study in which a finished run decides which one comes next: chains of runs, several at a
    time, in processes of one thread each.

    run: job -> dict, at the top of a module, since other processes import it
    keys: what such a dict must hold, see files.py
    """

    def __init__(self, run: Callable, path: Path, version: int, workers: int, keys: dict):
        self.run, self.path, self.version, self.workers = run, path, version, workers
        self.done = read_lines(path, version, keys)
        self.lock = threading.Lock()

    def __enter__(self) -> "Runs":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.processes = context.Pool(self.workers, start_worker)
        return self

    def __exit__(self, *_) -> None:
        self.processes.terminate()

    def __call__(self, job) -> dict:
        """The line of this job (a dataclass), from the file if it is there."""
        key = key_of(asdict(job))
        if key not in self.done:
            found = self.processes.apply(self.run, (job,))
            line = {"version": self.version, "job": asdict(job), **found}
            with self.lock, self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(to_json(line, self.path) + "\n")
                self.done[key] = line
        return self.done[key]

    def lines(self) -> list[dict]:
        """All finished runs."""
        with self.lock:
            return list(self.done.values())

    def chains(self, follow: Callable, starts: list, progress: Progress | None = None,
               desc: str = "chains") -> None:
        """`follow` each start to its end, as many at a time as there are processes."""
        with ThreadPool(self.workers) as threads:
            ended = threads.imap_unordered(follow, starts)
            for _ in progress(ended, total=len(starts), desc=desc) if progress else ended:
                pass
