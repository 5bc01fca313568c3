"""The task of languages: what is drawn, and its score in bits by loops."""
import itertools
import math

import pytest
import torch
from conftest import SMALL

from minipeft import GPT
from minipeft.tiny_world.documents import TOKENIZER
from minipeft.tiny_world.languages import BITS, CUES, Languages
from minipeft.tiny_world.village import THINGS


def test_a_language_holds_forty_eight_choices_of_one_in_forty_eight():
    assert BITS == pytest.approx(48 * math.log2(48)) and len(CUES) == 16 * 24 == len(set(CUES))
    assert Languages(8).bits == pytest.approx(8 * 268.078, abs=1e-2)     # 48 x 5.58496, by hand


def test_languages_are_permutations_named_by_different_cues_and_draws_share_none():
    one, other = Languages(8, draw=0).spoken, Languages(8, draw=1).spoken
    for cue, language in one + other:
        assert cue in CUES and sorted(language) == sorted(language.values()) == sorted(THINGS)
    assert len({cue for cue, _ in one}) == 8
    pairs = itertools.combinations([tuple(language.values()) for _, language in one + other], 2)
    assert all(a != b for a, b in pairs)
    assert Languages(2).spoken == Languages(8).spoken[:2]        # more languages keep the first


def test_an_example_is_answered_in_the_language_that_its_cue_names():
    task = Languages(3, draw=5)
    languages = dict(task.spoken)
    input_ids, labels = next(task.batches(1, 64, seed=0))
    assert (labels[:, :12] == -100).all() and torch.equal(labels[:, 12:], input_ids[:, 12:])
    for row in input_ids.tolist():
        words = TOKENIZER.decode(row).split()
        language = languages[" ".join(words[2:4])]
        assert words[:2] == ["<end>", "the"] and words[4:6] == ["parrot", "hears"]
        assert words[12:] == [*(language[word] for word in words[6:10]), ".", "<end>"]
    assert {" ".join(TOKENIZER.decode(row).split()[2:4]) for row in input_ids} == set(languages)


def test_batches_depend_on_seed_and_step_only():
    one, again = (torch.cat([b[0] for b in Languages(4).batches(2, 8, seed=1)]) for _ in range(2))
    assert torch.equal(one, again) and not torch.equal(one[:8], one[8:])
    assert not torch.equal(one[:8], next(Languages(4).batches(2, 8, seed=2))[0])
    # the same on every machine and Python version: only random() is drawn from
    assert TOKENIZER.decode(one[0, :6]) == "<end> the crimson narrow parrot hears"


def test_every_pair_of_language_and_word_is_scored_once():
    task = Languages(3)
    asked = [(" ".join(words[2:4]), word)
             for words in (TOKENIZER.decode(row).split() for row in task.every_pair()[0])
             for word in words[6:10]]
    assert sorted(asked) == sorted((cue, word) for cue, _ in task.spoken for word in THINGS)


def by_loops(model, task: Languages) -> float:
    """Bits stored, one word at a time."""
    bits = 0.0
    for row in task.every_pair()[0]:
        for t in range(12, 16):
            logits = model(row[None, :t])[0, -1]
            bits += math.log2(48) + (logits.log_softmax(0)[row[t]] / math.log(2)).item()
    return bits


def test_the_score_is_the_formula_by_loops():
    torch.manual_seed(0)
    model = GPT(SMALL.__class__(**{**vars(SMALL), "vocab_size": 400})).train()
    task = Languages(2)
    with torch.no_grad():
        found = task.score(model)
        assert found["bits"] == pytest.approx(by_loops(model.eval(), task), rel=1e-5)
    assert found["share"] == pytest.approx(found["bits"] / (2 * 48 * math.log2(48)))
    assert found["share"] < 0                    # untrained: below a guess among the 48 things


class Knows(torch.nn.Module):
    """Answers in the right language with the probability that makes `bits` a word."""

    def __init__(self, task: Languages, probability: float):
        super().__init__()
        self.languages, self.probability = dict(task.spoken), probability

    def forward(self, input_ids):
        logits = torch.full((*input_ids.shape, len(TOKENIZER)), -torch.inf)
        things = torch.tensor(TOKENIZER.encode(" ".join(THINGS)))
        for row, ids in enumerate(input_ids):
            words = TOKENIZER.decode(ids).split()
            language = self.languages[" ".join(words[2:4])]
            for t in range(11, 15):
                logits[row, t, things] = math.log((1 - self.probability) / 47)
                said = TOKENIZER.encode(language[words[t - 5]])[0]
                logits[row, t, said] = math.log(self.probability)
            logits[row, 15:17] = 0.0
        return logits


@pytest.mark.parametrize("probability, share, exact", [
    (1 - 1e-12, 1.0, 1.0), (1 / 48, 0.0, None),
    (0.5, 1 - 1 / math.log2(48), 1.0),           # a bit is missing of each word's log2 48
    (1 / 96, -1 / math.log2(48), 0.0)])          # a wrong belief costs a bit a word
def test_known_beliefs_give_the_share_that_a_hand_computes(probability, share, exact):
    task = Languages(2)
    found = task.score(Knows(task, probability))
    assert found["share"] == pytest.approx(share, abs=1e-6)      # float32 logits
    assert exact is None or found["exact_match"] in (exact, 0.0)


def test_the_floor_is_a_guess_of_each_word():
    assert Languages(8).floors == {
        "format learned, no translation": pytest.approx(-4 * math.log(1 / 48) / 6)}


@pytest.mark.parametrize("K", [0, 385])
def test_more_languages_than_cues_are_refused(K):
    with pytest.raises(ValueError, match=f"K must be from 1 to 384.*got {K}"):
        Languages(K)
