"""A claim, its verdict, and the numbers behind it.

    check(measurements) -> values;    the verdict stands while every value lies in its range
"""
import math
from collections.abc import Callable
from dataclasses import dataclass

VERDICTS = ("true", "conditionally true", "imprecise", "false")


@dataclass(frozen=True)
class Value:
    """One number: what it is, what was found, and the range that it must lie in."""

    name: str
    found: float
    unit: str          # GB is 10^9 bytes, GiB 2^30
    low: float
    high: float
    measured: bool     # seconds, losses, random draws: differs from machine to machine

    @property
    def holds(self) -> bool:
        return self.low <= self.found <= self.high

    def text(self) -> str:
        wanted = "" if self.holds else f" (WANTED {self.range()})"
        return f"{self.name}: {self.number(self.found)} {self.unit}".rstrip() + wanted

    def range(self) -> str:
        """The range in words: "5 ... 60", "at least 20", "1,234"."""
        if self.low == self.high:
            return self.number(self.low)
        if math.isinf(self.high):
            return f"at least {self.number(self.low)}"
        if math.isinf(self.low):
            return f"at most {self.number(self.high)}"
        return f"{self.number(self.low)} ... {self.number(self.high)}"

    def number(self, x: float) -> str:
        """Whole numbers with commas; others to 6 digits, measured ones to 3."""
        if isinstance(x, bool):
            return "yes" if x else "no"
        if x == round(x) or abs(x) >= 1e4:
            return f"{round(x):,}"
        return f"{x:.3g}" if self.measured else f"{x:.6g}"

    def stable_text(self) -> str:
        """The same on every machine: of a measured value only its range."""
        if not self.measured:
            return self.text()
        return f"{self.name}: {self.range()} {self.unit}".rstrip() + " (measured)"


def exact(name: str, found: float, wanted: float, unit: str = "", tolerance: float = 0.0) -> Value:
    """A computed number; `wanted` comes from elsewhere, `tolerance` is half its last digit."""
    return Value(name, found, unit, wanted - tolerance, wanted + tolerance, measured=False)


def fact(name: str, found: bool, wanted: bool = True) -> Value:
    """Something that holds or does not."""
    return Value(name, bool(found), "", wanted, wanted, measured=False)


def within(name: str, found: float, low: float, high: float, unit: str = "") -> Value:
    """A measured number and the range in which the verdict stands."""
    return Value(name, found, unit, low, high, measured=True)


@dataclass(frozen=True)
class Claim:
    """A sentence of course notes. TypeError without a check, ValueError for an unknown verdict."""

    id: int
    claim: str                         # the sentence, as it circulates
    said: str                          # where
    verdict: str                       # one of VERDICTS
    why: str                           # the condition, or what is wrong
    source: str                        # paper and table, or "computed here"
    notebook: str                      # "00_the_bottleneck: heading of the section that proves it"
    check: Callable                    # Measurements -> list[Value]

    def __post_init__(self):
        if not callable(self.check):
            raise TypeError(f"claim {self.id} needs a check, a function from Measurements to "
                            f"Values, got {self.check!r}")
        if self.verdict not in VERDICTS:
            raise ValueError(f"the verdict of claim {self.id} must be one of "
                             f"{', '.join(VERDICTS)}, got {self.verdict!r}")
        for name in ("claim", "said", "why", "source", "notebook"):
            if not getattr(self, name):
                raise ValueError(f"claim {self.id} lacks its {name}")

    def values(self, measurements) -> list[Value]:
        """The numbers; ValueError if the check looked at nothing."""
        values = self.check(measurements)
        if not values:
            raise ValueError(f"the check of claim {self.id} returned no value")
        return values
