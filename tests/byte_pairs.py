"""Byte-level BPE as SmolLM2 was trained with it, by loops: the token ids that tests expect.

Shares nothing with the loader under test: the vocabulary is read by `struct` alone, texts are cut
by Unicode categories, pairs are merged one at a time (Sennrich et al. 2016).
"""
import itertools
import re
import struct
import unicodedata

SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def read_metadata(path) -> dict:
    """All keys of a GGUF file that is known to be whole."""
    data, at = path.read_bytes(), 24

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def value(kind):
        nonlocal at
        if kind == 8:
            length = take("Q")
            at += length
            return data[at - length:at].decode()
        if kind == 9:
            kind, n = take("I"), take("Q")
            return [value(kind) for _ in range(n)]
        return take(SIZES[kind])

    found = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key = value(8)
        found[key] = value(take("I"))
    return found


def kind_of(char: str) -> str:
    """L letter, N number, S white space, O other: what GPT-2's pattern tells apart."""
    category = unicodedata.category(char)[0]
    if category in "LN":
        return category
    return "S" if char.isspace() and char not in "\x1c\x1d\x1e\x1f" else "O"


def words_of(text: str) -> list[str]:
    """'s|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?O+|S+ with no text behind it|S+    GPT-2's pattern"""
    words, at = [], 0
    while at < len(text):
        kinds = "".join(map(kind_of, text[at:]))
        ending = next((e for e in ENDINGS if text.startswith(e, at)), "")
        run = re.match("S?(L+|N+|O+)", kinds)
        if ending:
            length = len(ending)
        elif run and (kinds[0] != "S" or text[at] == " "):
            length = run.end()
        else:
            length = re.match("S+", kinds).end()
            if length < len(kinds) and length > 1:
                length -= 1                    # the last one goes before the word
        words.append(text[at:at + length])
        at += length
    return words


def digits_alone(text: str) -> list[str]:
    """Every number of one character by itself, and what stands between them."""
    pieces = [""]
    for char in text:
        if kind_of(char) == "N":
            pieces += [char, ""]
        else:
            pieces[-1] += char
    return [piece for piece in pieces if piece]


def byte_letters() -> dict[int, str]:
    """Radford et al. 2019: bytes that print stand for themselves, the others from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in prints]
    return {b: chr(b) for b in prints} | {b: chr(256 + i) for i, b in enumerate(others)}


class BytePairs:
    """`encode(text)` of a GGUF file's vocabulary; digits: whether each digit stands alone."""

    def __init__(self, path, digits: bool = True):
        metadata = read_metadata(path)
        self.digits, words = digits, metadata["tokenizer.ggml.tokens"]
        self.ids = {word: i for i, word in enumerate(words)}
        self.ranks = {pair: i for i, pair in enumerate(metadata["tokenizer.ggml.merges"])}
        self.control = [word for word, kind in zip(words, metadata["tokenizer.ggml.token_type"])
                        if kind == 3]
        self.letters = byte_letters()

    def encode(self, text: str) -> list[int]:
        ids = []
        for part in re.split("(" + "|".join(map(re.escape, self.control)) + ")", text):
            pieces = digits_alone(part) if self.digits else [part]
            ids += ([self.ids[part]] if part in self.control else
                    [i for piece in pieces for word in words_of(piece) for i in self.merge(word)])
        return ids

    def merge(self, word: str) -> list[int]:
        parts = [self.letters[b] for b in word.encode()]
        while True:
            ranked = [(self.ranks.get(f"{a} {b}", len(self.ranks)), i)
                      for i, (a, b) in enumerate(itertools.pairwise(parts))]
            rank, i = min(ranked, default=(len(self.ranks), 0))
            if rank == len(self.ranks):
                return [self.ids[part] for part in parts]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
