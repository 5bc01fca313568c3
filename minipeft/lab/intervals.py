"""How sure a difference between two arms is, when both answered the same requests.

    d = mean over seeds and requests of a  -  the same of b        a, b: (seeds, requests), 1 right

The requests are drawn anew, with replacement, the same ones for both arms, since a hard request is
hard for both; what then happens to d in 95 % of the draws is the interval.    Efron 1979
Drawing the seeds anew too, each arm's own, asks for other trainings as well as other requests.
"""
from dataclasses import asdict, dataclass

import numpy as np

from ..files import short

DRAWS = 10_000
SHARE = 0.95


@dataclass(frozen=True)
class Difference:
    """All but the counts in shares of the requests."""

    mean: float
    requests: tuple[float, float]            # the interval, requests drawn anew
    seeds: tuple[float, float] | None        # seeds drawn anew too; None: an arm has one seed
    n_requests: int
    n_seeds: tuple[int, int]                 # of a and of b

    as_dict = asdict


def paired_difference(a: list, b: list) -> Difference:
    """Of arm a over arm b, a list a seed of the same requests each, 1 where right.

    ValueError unless both have a seed, and every seed as many requests.
    """
    (a, b), random = (rectangle(rows) for rows in (a, b)), np.random.default_rng(0)
    n = a.shape[1]
    if b.shape[1] != n:
        raise ValueError(f"a paired difference wants the same requests of both arms, got {n} and "
                         f"{b.shape[1]}; score both on the same ones")
    counts = drawn(random, n)                                              # (DRAWS, N)
    over_requests = counts @ (a.mean(0) - b.mean(0)) / n
    over_seeds = None
    if min(len(a), len(b)) > 1:
        again = [drawn(random, len(rows)) @ rows / len(rows) for rows in (a, b)]    # (DRAWS, N)
        over_seeds = interval((counts * (again[0] - again[1])).sum(1) / n)
    return Difference(float(a.mean() - b.mean()), interval(over_requests), over_seeds, n,
                      (len(a), len(b)))


def rectangle(rows: list) -> np.ndarray:
    if not rows or not rows[0] or {len(row) for row in rows} != {len(rows[0])}:
        raise ValueError(f"a paired difference wants a list of the same requests for every seed, "
                         f"got {short(rows)}; score every seed on the same requests")
    return np.array(rows, dtype=float)                                     # (S, N)


def drawn(random: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n things comes up in n draws with replacement, (DRAWS, n)."""
    return random.multinomial(n, np.full(n, 1 / n), size=DRAWS)


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
