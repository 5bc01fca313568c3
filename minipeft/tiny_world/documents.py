"""The tiny world as a model meets it in pretraining: token ids, batches, held-out documents.

A sequence is <end> document <end> document <end> ... One word is one token. Batches are
(input_ids, labels), both (B, T) int64, under HuggingFace's convention: labels are not shifted, and
-100 marks a position that is not scored. Losses are in nats per scored token.
"""
import difflib
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .village import FORMS, GRAMMAR, WORDS

END = "<end>"
KINDS = tuple(dict.fromkeys(form.kind for form in FORMS))


class WordTokenizer:
    """One token a word; words are separated by spaces. Token 0 is <end>."""

    def __init__(self):
        self.words = (END, *WORDS)
        self.id_of = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)    # V

    def encode(self, text: str) -> list[int]:
        """ValueError names the first unknown word and the nearest known one."""
        if not isinstance(text, str):
            raise TypeError(f"text must be words in a str, got {type(text).__name__}")
        try:
            return [self.id_of[word] for word in text.split()]
        except KeyError as error:
            word = error.args[0]
            nearest = difflib.get_close_matches(word, self.words, n=1, cutoff=0)[0]
            raise ValueError(f"the tiny world has no word {word!r}; the nearest is {nearest!r} "
                             f"(all {len(self)} words: WordTokenizer().words)") from None

    def decode(self, ids) -> str:
        ids = [int(index) for index in ids]
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(f"token ids lie in 0..{len(self) - 1}, got {index}")
        return " ".join(self.words[index] for index in ids)


TOKENIZER = WordTokenizer()


def log_prob(tokens) -> float:
    """Exact log-probability, in nats, of one document given as token ids without <end>."""
    return GRAMMAR.log_prob(TOKENIZER.decode(tokens))


# ---------------------------------------------------------------- pretraining


def pretraining_batch(seed: int, step: int, rows: int = 32, length: int = 64
                      ) -> tuple[Tensor, Tensor]:
    """Rows of documents one after another, the last one cut; the same for the same (seed, step).

    A row begins with <end> and a fresh document: no token is scored on half a context.
    """
    if rows < 1 or length < 2:
        raise ValueError(f"a batch has at least 1 row of 2 tokens, got {rows} of {length}")
    rng = random.Random(f"pretraining {seed} {step}")
    input_ids = torch.empty(rows, length, dtype=torch.long)    # (B, T)
    for row in input_ids:
        ids = [0]
        while len(ids) < length:
            ids += [*TOKENIZER.encode(GRAMMAR.draw(rng).text), 0]
        row.copy_(torch.tensor(ids[:length]))
    return input_ids, input_ids.clone()


def pretraining_batches(seed: int, rows: int = 32, length: int = 64
                        ) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of step 0, 1, 2, ... without end."""
    step = 0
    while True:
        yield pretraining_batch(seed, step, rows, length)
        step += 1


class HeldOut(NamedTuple):
    """Whole documents, one a row, and the best loss any model can expect on them."""

    input_ids: Tensor    # (B, T): <end> document <end>, then <end> as padding
    labels: Tensor       # (B, T): -100 on the padding
    oracle: float        # nats per token: -log p of the documents / their tokens, <end> counted


def validation(kind: str | None = None, n: int = 128) -> HeldOut:
    """`n` documents of one kind, or of the mixture; always the same ones.

    Held out means drawn from a stream of its own: short facts do occur in pretraining too.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be None or one of {KINDS}, got {kind!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1 document, got {n}")
    rng, documents = random.Random(f"validation {kind}"), []
    while len(documents) < n:
        document = GRAMMAR.draw(rng)
        if kind in (None, document.kind):
            documents.append(TOKENIZER.encode(document.text))
    longest = max(map(len, documents))
    pad = [longest - len(ids) for ids in documents]
    input_ids = [[0, *ids, 0] + [0] * k for ids, k in zip(documents, pad)]
    labels = [[0, *ids, 0] + [-100] * k for ids, k in zip(documents, pad)]
    nats = -math.fsum(map(log_prob, documents))
    return HeldOut(torch.tensor(input_ids), torch.tensor(labels),
                   nats / sum(len(ids) + 1 for ids in documents))
