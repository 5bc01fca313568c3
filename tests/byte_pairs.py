"""Byte-level BPE as SmolLM2 (and Llama 3, Qwen2) was trained with it, and SentencePiece's, by
loops: the token ids that tests expect.

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


def words_of_llama_3(text: str, most_digits: int = 3) -> list[str]:
    r"""(?i:endings)|[^\\r\\n L N]?L+|N{1,3}| ?O+[\\r\\n]*|S*[\\r\\n]+|S+ with no text behind it|S+
    Qwen2's has single digits."""
    words, at = [], 0
    while at < len(text):
        kinds = "".join(map(kind_of, text[at:]))
        ending = next((e for e in ENDINGS if text[at:].lower().startswith(e)), "")
        letters = re.match("[SO]?L+", kinds) if text[at] not in "\r\n" else None
        other = re.match("S?O+", kinds) if text[at] == " " else re.match("O+", kinds)
        if ending:
            length = len(ending)
        elif letters:
            length = letters.end()
        elif kinds[0] == "N":
            length = min(most_digits, re.match("N+", kinds).end())
        elif other:
            length = other.end()
            while text[at + length:at + length + 1] in ("\r", "\n"):
                length += 1
        else:
            run = text[at:at + re.match("S+", kinds).end()]
            length = max(run.rfind("\r"), run.rfind("\n")) + 1
            if length == 0:
                length = len(run) - (len(run) > 1 and at + len(run) < len(text))
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
    """`encode(text)` of a GGUF file's vocabulary; digits: whether each digit stands alone;
    whole: whether a word that is a token is taken as it is."""

    def __init__(self, path, digits: bool = True, words_of=words_of, whole: bool = False):
        metadata = read_metadata(path)
        self.words_of, self.whole = words_of, whole
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
            words = [word for piece in pieces for word in self.words_of(piece)]
            ids += ([self.ids[part]] if part in self.control else
                    [i for word in words for i in self.merge(word)])
        return ids

    def merge(self, word: str) -> list[int]:
        parts = [self.letters[b] for b in word.encode()]
        if self.whole and "".join(parts) in self.ids:
            return [self.ids["".join(parts)]]
        while True:
            ranked = [(self.ranks.get(f"{a} {b}", len(self.ranks)), i)
                      for i, (a, b) in enumerate(itertools.pairwise(parts))]
            rank, i = min(ranked, default=(len(self.ranks), 0))
            if rank == len(self.ranks):
                return [self.ids[part] for part in parts]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]


def sentence_pieces(text: str, ids: dict[str, int], scores: list[float]) -> list[int]:
    """Of all neighbours whose union is a piece, the two of the highest score become one, the first
    of several; a character that is no piece is its UTF-8 bytes."""
    parts = list("\u2581" * bool(text) + text.replace(" ", "\u2581"))
    while True:
        scored = [(scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                  if a + b in ids]
        if not scored:
            break
        i = -max(scored)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in
            ([ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()])]
