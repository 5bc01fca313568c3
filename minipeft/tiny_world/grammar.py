"""A tiny world whose every text has a known probability, so that the best possible loss is known.

    p(text) = sum over derivations that print it of  p(form) * product over slots of p(value)

A document is one *form* (a template with slots) and one value for each slot. `Grammar.draw`
chooses them. `Grammar.log_prob` knows nothing of a draw: it matches the text against every form,
reads the printed slots off the text, and sums over the slots that are not printed (latent ones).
No model can have a lower expected loss than -log p / number of tokens: that is Gibbs' inequality.
"""

import math
import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class Choice:
    """A distribution over words: p(value) = weight / sum of weights."""

    def __init__(self, weights: dict[str, float]):
        total = sum(weights.values())
        self.p = {value: weight / total for value, weight in weights.items()}
        self.values = tuple(self.p)
        self.cumulative = list(accumulate(self.p.values()))[:-1]    # the last value takes the rest

    def draw(self, rng: random.Random) -> str:
        return self.values[bisect(self.cumulative, rng.random())]


def uniform(values) -> Choice:
    return Choice(dict.fromkeys(values, 1.0))


def favouring(favourites, values, share: float = 0.75) -> Choice:
    """The favourites share the mass `share` evenly, all other values the rest."""
    others = [value for value in values if value not in favourites]
    return Choice({**dict.fromkeys(favourites, share / len(favourites)),
                   **dict.fromkeys(others, (1 - share) / len(others))})


@dataclass(frozen=True)
class Form:
    """A template: words, and slots in braces, each of which prints exactly one word."""

    kind: str
    p: float                        # probability of this form among all forms of the grammar
    template: str
    latent: tuple[str, ...] = ()    # slots that are drawn first and not printed

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots in the order in which they are drawn: latent ones, then by first appearance."""
        printed = [piece[1:-1] for piece in self.template.split() if piece[0] == "{"]
        return tuple(dict.fromkeys([*self.latent, *printed]))

    def read(self, words: list[str]) -> dict[str, str] | None:
        """The values of the printed slots, or None if these words are not of this form."""
        pieces, values = self.template.split(), {}
        if len(pieces) != len(words):
            return None
        for piece, word in zip(pieces, words):
            expected = values.setdefault(piece, word) if piece[0] == "{" else piece
            if expected != word:
                return None
        return {piece[1:-1]: word for piece, word in values.items()}


class Document(NamedTuple):
    kind: str
    text: str
    log_prob: float    # of the derivation, in nats: the sum of the choices, latent ones included


class Grammar:
    """Forms, and for each slot (table, *parents): a Choice under the values of its parents."""

    def __init__(self, forms: list[Form], slots: dict[str, tuple]):
        total = math.fsum(form.p for form in forms)
        if abs(total - 1) > 1e-12:    # a sum of a dozen doubles
            raise ValueError(f"the probabilities of the forms must sum to 1, got {total}")
        self.forms, self.slots = forms, slots
        self._form = Choice({str(index): form.p for index, form in enumerate(forms)})
        self._plans = [(form, form.slots) for form in forms]

    def choice(self, slot: str, values: dict[str, str]) -> Choice:
        table, *parents = self.slots[slot]
        for parent in parents:
            table = table[values[parent]]
        return table

    def words(self, slot: str) -> set[str]:
        """Every word that the slot can print."""
        tables = [self.slots[slot][0]]
        for _ in self.slots[slot][1:]:
            tables = [inner for table in tables for inner in table.values()]
        return {value for choice in tables for value in choice.values}

    def draw(self, rng: random.Random) -> Document:
        form, slots = self._plans[int(self._form.draw(rng))]
        values, log_prob = {}, math.log(form.p)
        for slot in slots:
            choice = self.choice(slot, values)
            values[slot] = choice.draw(rng)
            log_prob += math.log(choice.p[values[slot]])
        return Document(form.kind, form.template.format_map(values), log_prob)

    def log_prob(self, text: str) -> float:
        """The exact log-probability of a whole document in nats; -inf if it cannot be drawn."""
        words, p = text.split(), 0.0
        for form, slots in self._plans:
            printed = form.read(words)
            if printed is not None:
                p += form.p * self._probability(slots, printed)
        return math.log(p) if p > 0 else -math.inf

    def _probability(self, slots: tuple[str, ...], values: dict[str, str]) -> float:
        """Product over the printed slots, sum over the values of the latent ones."""
        if not slots:
            return 1.0
        slot, *rest = slots
        choice, p = self.choice(slot, values), 0.0
        for value in [values[slot]] if slot in values else choice.values:
            if value in choice.p:
                p += choice.p[value] * self._probability(rest, {**values, slot: value})
        return p
