"""Paired bootstrap intervals, against every possible draw and against a count by hand."""
import itertools

import numpy as np
import pytest

from minipeft.lab.intervals import paired_difference


def every_draw(a: list, b: list, seeds: bool) -> list[float]:
    """The difference in every equally likely draw of requests and, of each arm, of seeds."""
    def draws(n: int) -> list[tuple]:
        return list(itertools.product(range(n), repeat=n))

    N, found = len(a[0]), []
    for columns in draws(N):
        for of_a in draws(len(a)) if seeds else [range(len(a))]:
            for of_b in draws(len(b)) if seeds else [range(len(b))]:
                found.append(sum(a[s][i] for s in of_a for i in columns) / (len(a) * N)
                             - sum(b[s][i] for s in of_b for i in columns) / (len(b) * N))
    return found


def test_an_interval_is_that_of_every_possible_draw():
    a, b = [[1, 1, 0, 1], [1, 0, 1, 1]], [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(6 / 8 - 3 / 12)
    assert (found.n_requests, found.n_seeds) == (4, (2, 3))
    for interval, seeds in ((found.requests, False), (found.seeds, True)):
        low, high = np.quantile(every_draw(a, b, seeds), [0.025, 0.975])
        assert interval == pytest.approx((low, high), abs=1 / 24)     # a step of what is possible
    assert found.seeds[0] < found.requests[0]


def test_one_request_of_four_that_only_one_arm_gets_counted_by_hand():
    """The request is drawn k times of 4: k is 0 in 81 of 256 draws, 1 in 108, 2 in 54, 3 in 12, 4
    in one; so the interval is 0 ... 3 / 4 (4 in 0.4 %, 3 or more in 5.1 %)."""
    found = paired_difference([[1, 1, 0, 1]], [[1, 0, 0, 1]])
    assert found.mean == 0.25 and found.requests == (0.0, 0.75) and found.seeds is None


def test_requests_are_paired_so_what_is_equally_hard_for_both_adds_no_width():
    a = [[1, 0] * 20]
    found = paired_difference(a, a)
    assert found.mean == 0 and found.requests == (0, 0)


@pytest.mark.parametrize("a, b, message", [
    ([], [[1]], "got \\[\\]"), ([[]], [[1]], "got \\[\\[\\]\\]"),
    ([[1, 0], [1]], [[1, 0]], "for every seed"),
    ([[1, 0]], [[1, 0, 1]], "got 2 and 3; score both")])
def test_arms_with_other_requests_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b)
