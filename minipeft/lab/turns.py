"""Calls of several libraries that are timed in turn, each library in a process of its own.

In one process, the threads of whoever ran last still spin for a while on the core that the next one
needs. In turn, so that a drift of the machine hits all alike: only ratios within a case mean
anything. Each round begins with another contender, since it matters a little after whom one comes.
"""
import multiprocessing
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from time import perf_counter, sleep
from typing import Protocol

import torch

from ..measure import synchronize

OURS, PEER, TORCH = "minipeft", "bitsandbytes", "torch"
PAUSE_SECONDS = 0.02           # for the threads of the process that ran last to fall asleep
TURN_SECONDS = 0.02            # a shorter call is repeated for so long
LONG_SECONDS = 0.1             # beside which waking up is nothing
WARMUPS = 2

Build = Callable[[], Callable]     # -> the call that is timed


class Case(Protocol):
    """What is timed: it travels to the processes, and the calls are made there."""

    threads: int

    def builds(self) -> dict[str, Build]:
        """By contender, whose name begins with its library's."""


@contextmanager
def sides() -> Iterator[dict[str, Connection]]:
    """A process for minipeft, one for bitsandbytes, one for torch alone; how to talk to each."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for side in (OURS, PEER, TORCH):
        pipes[side], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs,), daemon=True))
        processes[-1].start()
        theirs.close()                       # so that a process that dies is noticed
    try:
        yield pipes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def serve(pipe: Connection) -> None:
    """Build a contender for (case, name), time a call of it for a name, forget all for None."""
    torch.set_flush_denormal(True)
    calls = {}
    while True:
        asked = pipe.recv()
        if asked is None:
            calls.clear()
        elif isinstance(asked, tuple):
            case, name = asked
            torch.set_num_threads(case.threads)
            calls[name] = case.builds()[name]()
        else:
            pipe.send(turn(calls[asked]))


def turn(call: Callable) -> float:
    """Seconds of a call: the median of those that fit into TURN_SECONDS, after one that wakes the
    threads, which may take a tick of the scheduler; of a long one, its only call."""
    seconds, woken = [], timed(call)
    if woken > LONG_SECONDS:
        return woken
    end = perf_counter() + TURN_SECONDS
    while not seconds or perf_counter() < end:
        seconds.append(timed(call))
    return statistics.median(seconds)


def timed(call: Callable) -> float:
    start = perf_counter()
    call()
    synchronize()
    return perf_counter() - start


def in_turn(case: Case, rounds: int, pipes: dict[str, Connection]) -> dict[str, list[float]]:
    """Seconds of each contender's call, one a round, after two rounds that warm up."""
    names = list(case.builds())
    pipe = {name: pipes[side_of(name)] for name in names}
    for name in names:
        pipe[name].send((case, name))
    seconds = {name: [] for name in names}
    for number in range(WARMUPS + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sleep(PAUSE_SECONDS)
            pipe[name].send(name)
            taken = pipe[name].recv()
            if number >= WARMUPS:
                seconds[name].append(taken)
    for each in pipes.values():
        each.send(None)
    return seconds


def side_of(name: str) -> str:
    """The process of a contender: "bitsandbytes, default" is one of the peer's."""
    found = name.split(",")[0]
    return found if found in (OURS, PEER) else TORCH
