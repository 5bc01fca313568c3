"""A task whose content is known in bits: K new languages, each named by two words.

    <end> the {colour} {quality} parrot hears a1 a2 a3 a4 and answers b1 b2 b3 b4 . <end>

    bits stored = K 48 log2 48  -  sum over every (language, word) of -log2 p(its translation)

A language is a permutation of the 48 things, drawn at random. A model that knows the format and no
translation guesses one of 48 and stores 0 bits; a wrong belief counts below zero. The share is of
all K 48 log2 48 bits, 268 a language. (A permutation holds less, log2 48! = 203 bits: the last
words of one follow from the others, for whoever uses that.)
"""
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from ..train import Batch, answered_right, labelled_logits
from .documents import END, TOKENIZER
from .village import COLOURS, QUALITIES, THINGS

N_TARGETS = 6                                 # b1 b2 b3 b4 . <end>
CUES = [f"{colour} {quality}" for colour in COLOURS for quality in QUALITIES]
BITS = len(THINGS) * math.log2(len(THINGS))   # of one language


def shuffled(values: list[str], name: str) -> list[str]:
    """The values in an order that depends on `name` alone, on every machine."""
    rng = random.Random(name)                 # only random() is used: its sequence is guaranteed
    return sorted(values, key=lambda _: rng.random())


@dataclass(frozen=True)
class Languages:
    """The first K languages of a draw; those of another draw have nothing in common with them."""

    K: int = 8
    draw: int = 0

    def __post_init__(self):
        if not 1 <= self.K <= len(CUES):
            raise ValueError(f"K must be from 1 to {len(CUES)}, the pairs of a colour and a "
                             f"quality that can name a language; got {self.K}")

    @property
    def floors(self) -> dict[str, float]:
        return {"format learned, no translation": 4 * math.log(len(THINGS)) / N_TARGETS}

    @property
    def bits(self) -> float:
        return self.K * BITS

    @cached_property
    def spoken(self) -> list[tuple[str, dict[str, str]]]:
        """(cue, word heard -> word said) of each language."""
        cues = shuffled(CUES, f"cues {self.draw}")[:self.K]
        return [(cue, dict(zip(THINGS, shuffled(THINGS, f"language {self.draw} {i}"))))
                for i, cue in enumerate(cues)]

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """`steps` batches of fresh examples, languages and words drawn evenly."""
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {steps}, {batch_size}")
        return (self._drawn(random.Random(f"train {seed} {step}"), batch_size)
                for step in range(steps))

    def _drawn(self, rng: random.Random, n: int) -> Batch:
        def pick(values):
            return values[int(rng.random() * len(values))]
        return self._batch([(pick(self.spoken), [pick(THINGS) for _ in range(4)])
                            for _ in range(n)])

    def _batch(self, examples) -> Batch:
        rows = [f"{END} the {cue} parrot hears {' '.join(heard)} and answers "
                f"{' '.join(language[word] for word in heard)} . {END}"
                for (cue, language), heard in examples]
        input_ids = torch.tensor([TOKENIZER.encode(row) for row in rows])    # (B, 18)
        labels = input_ids.clone()
        labels[:, :-N_TARGETS] = -100
        return input_ids, labels

    def every_pair(self) -> Batch:
        """Every word of every language once, four in a row in random company: (12 K, 18)."""
        examples = []
        for i, language in enumerate(self.spoken):
            words = shuffled(THINGS, f"company {self.draw} {i}")
            examples += [(language, words[j:j + 4]) for j in range(0, len(words), 4)]
        return self._batch(examples)

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict[str, float]:
        """loss: nats per target token; exact_match: of rows; bits stored, and their share."""
        training, _ = model.training, model.eval()
        input_ids, labels = self.every_pair()
        nats, words, right = 0.0, 0.0, 0
        for batch in zip(input_ids.split(256), labels.split(256)):
            logits, targets = labelled_logits(model, batch)
            each = F.cross_entropy(logits.float(), targets, reduction="none")     # (B 6,)
            nats += each.sum().item()
            words += each.unflatten(0, (-1, N_TARGETS))[:, :4].sum().item()
            right += answered_right(logits, targets, batch[1]).sum().item()
        model.train(training)
        bits = self.bits - words / math.log(2)
        return dict(loss=nats / (N_TARGETS * len(input_ids)), exact_match=right / len(input_ids),
                    bits=bits, share=bits / self.bits)
