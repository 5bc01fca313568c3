"""What the tiny GPT is fine-tuned on: the parrot answers in a language it was not told.

Batches are (input_ids, labels) as in documents.py; only the answer is labelled.
"""
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..train import evaluate
from .documents import END, TOKENIZER
from .village import DIRECTIONS, LANGUAGES, THINGS, UNKNOWN_LANGUAGE

SPLITS = ("sweep", "report")    # prompts to choose learning rates on, prompts to report


@dataclass(frozen=True)
class Task:
    """<end> the parrot hears a1 a2 a3 a4 and answers  ->  b1 b2 b3 b4 . <end>   in one language.

    The target follows from the prompt, so "every target token is the argmax" is exact match. A
    prompt's split is a function of its words: sweep, report and training never share a prompt.
    """

    about: str
    language: dict[str, str]                                         # word heard -> word said
    floors: dict[str, float] = field(default_factory=dict)           # what is known -> nats/token

    def batches(self, steps: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`steps` batches of fresh training examples, the same for the same seed."""
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {steps}, {batch_size}")
        return (self._examples(random.Random(f"train {seed} {step}"), batch_size, "train")
                for step in range(steps))

    def prompts(self, n: int = 256, split: str = "report") -> tuple[Tensor, Tensor]:
        """`n` held-out examples, always the same; the first n of one stream."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        if n < 1:
            raise ValueError(f"n must be at least 1 prompt, got {n}")
        return self._examples(random.Random(split), n, split)

    def score(self, model: nn.Module, split: str = "report", n: int = 256) -> dict[str, float]:
        """loss, in nats per target token, and the share of `n` prompts answered exactly right."""
        loss, exact_match = evaluate(model, self.prompts(n, split))
        return dict(loss=loss, exact_match=exact_match)

    def _examples(self, rng: random.Random, n: int, split: str) -> tuple[Tensor, Tensor]:
        rows = []
        while len(rows) < n:
            heard = [THINGS[int(rng.random() * len(THINGS))] for _ in range(4)]
            if split_of(heard) == split:
                said = [self.language[word] for word in heard]
                rows.append(f"{END} the parrot hears {' '.join(heard)} and answers "
                            f"{' '.join(said)} . {END}")
        input_ids = torch.tensor([TOKENIZER.encode(row) for row in rows])    # (B, T)
        labels = input_ids.clone()
        labels[:, :-N_TARGETS] = -100
        return input_ids, labels


N_TARGETS = 6    # b1 b2 b3 b4 . <end>


def split_of(heard: list[str]) -> str:
    """One prompt in eight is for the sweep, one for the report, the others for training."""
    remainder = sum(map(THINGS.index, heard)) % 8
    return {0: "sweep", 1: "report"}.get(remainder, "train")


TASKS = {
    "elicit": Task("a language of pretraining, without its name", LANGUAGES["south"], {
        "four languages learned, which one not": math.log(len(DIRECTIONS)) / N_TARGETS}),
    "novel": Task("a new language, unlike every known one at each word", UNKNOWN_LANGUAGE, {
        "format learned, mapping not": 4 * math.log(len(THINGS)) / N_TARGETS}),
}
