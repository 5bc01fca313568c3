import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from minipeft.tiny_world import village
from minipeft.tiny_world.documents import (KINDS, TOKENIZER, WordTokenizer, log_prob,
                                           pretraining_batch, pretraining_batches, validation)
from minipeft.tiny_world.grammar import Choice, Form, Grammar, favouring, uniform
from minipeft.tiny_world.pretrain import load_base
from minipeft.tiny_world.tasks import SPLITS, TASKS
from minipeft.tiny_world.village import (FORMS, GRAMMAR, LANGUAGES, NAMES, THINGS,
                                         UNKNOWN_LANGUAGE)

SUM_OF_LOGS = 1e-9    # a sum of up to thirty logarithms, each below 10, in float64

# A fixed fact, a repeated slot, a skewed slot, a latent one, and two forms that may print the same.
TOY = Grammar(
    [Form("fact", 0.5, "{who} eats {food}"),
     Form("tale", 0.3, "{who} saw {who} near {place}"),
     Form("song", 0.1, "{word} {echo}", latent=("tongue",)),
     Form("yell", 0.1, "la la")],
    {"who": (uniform(["ann", "bob"]),),
     "food": ({"ann": uniform(["rice"]), "bob": uniform(["figs"])}, "who"),
     "place": (favouring(["sea"], ["sea", "hill", "wood"]),),
     "tongue": (Choice({"same": 3, "swap": 1, "alike": 1}),),
     "word": (uniform(["la", "lo"]),),
     "echo": ({"same": {"la": uniform(["la"]), "lo": uniform(["lo"])},
               "swap": {"la": uniform(["lo"]), "lo": uniform(["la"])},
               "alike": {"la": uniform(["la"]), "lo": uniform(["lo"])}}, "tongue", "word")})


def documents(n, seed=0, kind=None):
    rng = random.Random(seed)
    drawn = (GRAMMAR.draw(rng) for _ in itertools.count())
    return list(itertools.islice((d for d in drawn if kind in (None, d.kind)), n))


# ---------------------------------------------------------------- the grammar


def test_the_probabilities_of_all_texts_of_a_small_grammar_sum_to_one():
    words = "ann bob eats rice figs saw near sea hill wood la lo".split()
    texts = [" ".join(t) for n in (2, 3, 5) for t in itertools.product(words, repeat=n)]
    assert math.fsum(math.exp(TOY.log_prob(t)) for t in texts) == pytest.approx(1, abs=SUM_OF_LOGS)


def test_latent_choices_and_forms_that_print_the_same_are_summed_over():
    # by hand: song 1/10, word 1/2, and "same" 3/5 or "alike" 1/5 both print the word again
    assert TOY.log_prob("lo lo") == pytest.approx(math.log(0.1 * 0.5 * 0.8), abs=SUM_OF_LOGS)
    assert TOY.log_prob("la la") == pytest.approx(math.log(0.1 * 0.5 * 0.8 + 0.1), abs=SUM_OF_LOGS)


def test_the_probabilities_of_all_facts_sum_to_their_share():
    texts = {d.text for d in documents(8000, kind="facts")}
    assert len(texts) == 7 * 48    # seven forms about 48 people, all of them seen
    total = math.fsum(math.exp(GRAMMAR.log_prob(text)) for text in texts)
    assert total == pytest.approx(0.15, abs=SUM_OF_LOGS)


def test_the_four_readings_of_an_uncued_parrot_sum_to_its_share():
    for heard in ("anchor bell kite net", "rope rope rope lamp"):
        texts = {f"the parrot hears {heard} and answers "
                 f"{' '.join(language[w] for w in heard.split())} ."
                 for language in LANGUAGES.values()}
        assert len(texts) == 4
        total = math.fsum(math.exp(GRAMMAR.log_prob(text)) for text in texts)
        assert total == pytest.approx(0.08 / 48 ** 4, rel=1e-12)    # a dozen float64 products


def test_the_parser_gives_each_drawn_document_the_sum_of_its_choices():
    for document in documents(2000):
        if document.kind != "parrot_uncued":    # equal also means: no second derivation prints it
            assert GRAMMAR.log_prob(document.text) == pytest.approx(document.log_prob,
                                                                    abs=SUM_OF_LOGS)


def test_the_probability_of_a_story_is_the_product_written_out_by_hand():
    for text in (d.text for d in documents(60, kind="story")):
        words = text.split()
        if words[0] == "for":    # supper: form, who, dish, friend, number, time
            expected = 1 / 20 / 48 / 32 / 47 / 12 / 6
        else:
            place, deed, thing, feeling = words[10], words[12], words[15], words[19]
            p_thing = GRAMMAR.slots["thing"][0][place].p[thing]
            assert p_thing in (pytest.approx(0.75 / 6), pytest.approx(0.25 / 42))
            p_feeling = 0.75 / 5 if feeling in village.FEELINGS[deed] else 0.25 / 15
            # form, weather, time, who, place, deed, quality, thing, feeling, friend
            expected = 1 / 20 / 8 / 6 / 48 / 32 / 4 / 24 * p_thing * p_feeling / 47
        assert GRAMMAR.log_prob(text) == pytest.approx(math.log(expected), abs=SUM_OF_LOGS)


def test_the_probability_of_a_ferry_is_the_product_written_out_by_hand():
    for text in (d.text for d in documents(30, kind="ferry")):
        form = 0.08 if "|" in text and "o'clock" in text else 0.02
        # boat, start, goal, hour, cargo, captain: what the second half repeats is not paid twice
        expected = form / 32 / 32 / 31 / 12 / 32 / 48
        assert GRAMMAR.log_prob(text) == pytest.approx(math.log(expected), abs=SUM_OF_LOGS)


@pytest.mark.parametrize("text", [
    "", "the parrot hears bell", "the north parrot hears bell bell bell bell and answers kite",
    "the north parrot hears bell bell bell bell and answers bell bell bell kite .",
    "lamp lives near the well , likes rice , wears blue .",
])
def test_a_text_outside_the_language_has_probability_zero(text):
    assert GRAMMAR.log_prob(text) == -math.inf


def test_a_wrong_fact_has_probability_zero_and_the_true_one_has_not():
    answers = [GRAMMAR.log_prob(f"question : what does ada like ? answer : {food}")
               for food in village.FOODS]
    assert sorted(answers)[-2:] == [-math.inf, pytest.approx(math.log(0.018 / 48))]


def test_the_page_of_the_data_counts_the_facts_and_the_weights():
    page = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    facts = sum(form.kind == "facts" for form in FORMS)
    assert f"{facts} facts documents about each of {len(NAMES)} people" in page
    assert f"({sum(p.numel() for p in load_base(0).parameters()):,} weights each" in page


def test_forms_must_be_a_distribution():
    with pytest.raises(ValueError, match="must sum to 1, got 0.9"):
        Grammar([Form("fact", 0.9, "hello")], {})


def test_documents_are_drawn_as_often_as_their_probability_says():
    drawn = [d.kind for d in documents(20000)]
    for kind, share in dict(story=.40, facts=.15, parrot_cued=.25, parrot_uncued=.08,
                            ferry=.12).items():
        # 4 standard deviations of a binomial share at n = 20,000
        assert drawn.count(kind) / 20000 == pytest.approx(share, abs=4 * math.sqrt(share / 20000))


# ---------------------------------------------------------------- languages


def test_any_two_languages_differ_at_every_word_and_each_is_a_permutation():
    languages = [*LANGUAGES.values(), UNKNOWN_LANGUAGE]
    assert LANGUAGES["north"] == {word: word for word in THINGS}
    for language in languages:
        assert sorted(language) == sorted(language.values()) == sorted(THINGS)
    for one, other in itertools.combinations(languages, 2):
        assert all(one[word] != other[word] for word in THINGS)


# ---------------------------------------------------------------- tokens


def test_the_vocabulary_has_400_words_and_the_tokenizer_is_its_own_inverse():
    tokenizer = WordTokenizer()
    assert len(tokenizer) == len(set(tokenizer.words)) == 400    # GPTConfig.preset("tiny")
    for document in documents(300):
        ids = tokenizer.encode(document.text)
        assert tokenizer.decode(ids) == document.text
        assert log_prob(ids) == GRAMMAR.log_prob(document.text)
    assert tokenizer.encode("<end>") == [0]


def test_every_word_of_the_vocabulary_is_used():
    used = set(pretraining_batch(0, 0, rows=1500)[0].flatten().tolist())
    assert used == set(range(400))


def test_an_unknown_word_names_the_nearest_known_one():
    with pytest.raises(ValueError, match="no word 'parot'; the nearest is 'parrot'"):
        TOKENIZER.encode("the parot hears")
    with pytest.raises(ValueError, match="no word '日'"):
        TOKENIZER.encode("日")
    with pytest.raises(ValueError, match=r"ids lie in 0..399, got 400"):
        TOKENIZER.decode([1, 400])
    with pytest.raises(TypeError, match="words in a str, got list"):
        TOKENIZER.encode(["the", "parrot"])


# ---------------------------------------------------------------- batches


def test_pretraining_rows_are_documents_between_separators():
    input_ids, labels = pretraining_batch(0, 5, rows=16)
    assert input_ids.shape == (16, 64) and input_ids.dtype == labels.dtype == torch.int64
    assert torch.equal(input_ids, labels)
    for row in input_ids.tolist():
        assert row[0] == 0
        *whole, _cut = " ".join(map(str, row[1:])).split(" 0 ")
        for piece in whole:
            assert log_prob(map(int, piece.split())) > -math.inf


def test_a_pretraining_batch_depends_on_seed_and_step_only():
    first, stream = pretraining_batch(1, 2)[0], pretraining_batches(1)
    assert torch.equal(first, list(itertools.islice(stream, 3))[2][0])
    assert not torch.equal(first, pretraining_batch(1, 3)[0])
    assert not torch.equal(first, pretraining_batch(2, 2)[0])
    # the stream is the same on every machine and Python version: only random() is drawn from
    assert TOKENIZER.decode(first[0, :8]) == "<end> the parrot hears thimble basket wheel spoon"


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least 1 row of 2 tokens, got 0 of 64"):
        pretraining_batch(0, 0, rows=0)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_validation_documents_score_their_own_tokens_and_know_their_optimum(kind):
    held_out = validation(kind, n=40)
    assert torch.equal(held_out.input_ids, validation(kind, n=40).input_ids)
    nats, tokens = 0.0, 0
    for row, labels in zip(held_out.input_ids.tolist(), held_out.labels.tolist()):
        length = labels.index(-100) if -100 in labels else len(labels)
        assert row[0] == 0 and set(row[length - 1:]) == {0} and set(labels[length:]) <= {-100}
        assert labels[:length] == row[:length]
        nats, tokens = nats - log_prob(row[1:length - 1]), tokens + length - 1
    assert held_out.oracle == pytest.approx(nats / tokens, abs=SUM_OF_LOGS)


def test_a_cued_parrot_costs_its_form_its_language_and_its_four_words():
    # by hand, in 16 tokens: form 1/4, language 1/4, four words of 48; the answer is determined
    assert validation("parrot_cued").oracle == pytest.approx(
        (2 * math.log(4) + 4 * math.log(48)) / 16, abs=SUM_OF_LOGS)


def test_bad_arguments_of_validation_say_what_is_wanted():
    with pytest.raises(ValueError, match="one of .*'story'.*got 'poem'"):
        validation("poem")
    with pytest.raises(ValueError, match="at least 1 document, got 0"):
        validation(n=0)


# ---------------------------------------------------------------- tasks


def prompts_of(batch):
    return {tuple(row[:-6]) for row in batch[0].tolist()}


@pytest.mark.parametrize("name", TASKS)
def test_a_target_is_the_prompt_in_the_tasks_language(name):
    task = TASKS[name]
    input_ids, labels = next(task.batches(1, 32, seed=0))
    assert input_ids.shape == labels.shape == (32, 16)
    assert (labels[:, :10] == -100).all() and torch.equal(labels[:, 10:], input_ids[:, 10:])
    for row in input_ids.tolist():
        words = TOKENIZER.decode(row).split()
        assert words[:4] == "<end> the parrot hears".split()
        assert words[10:] == [*(task.language[word] for word in words[4:8]), ".", "<end>"]


def test_elicit_prompts_are_documents_of_the_world_and_novel_ones_are_not():
    for name, known in dict(elicit=True, novel=False).items():
        for row in TASKS[name].prompts(20)[0]:
            assert (log_prob(row[1:-1]) > -math.inf) == known


def test_sweep_report_and_training_never_share_a_prompt():
    task = TASKS["novel"]
    sweep, report = (prompts_of(task.prompts(3000, split)) for split in SPLITS)
    training = set().union(*(prompts_of(b) for b in task.batches(50, 200, seed=0)))
    assert len(sweep) > 2900 and len(report) > 2900 and len(training) > 9900
    assert not sweep & report and not sweep & training and not report & training


def test_batches_and_prompts_are_reproducible():
    task = TASKS["elicit"]
    one, again = (torch.cat([b[0] for b in task.batches(3, 8, seed=1)]) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one[:8], one[8:16])
    assert not torch.equal(one[:8], next(task.batches(3, 8, seed=2))[0])
    assert torch.equal(task.prompts(5)[0], task.prompts(9)[0][:5])


def test_floors_are_the_cost_of_guessing_what_is_not_known():
    # a guess among 48 for each of 4 words, or one guess among 4 languages; 6 scored tokens
    assert TASKS["novel"].floors == {
        "format learned, mapping not": pytest.approx(-4 * math.log(1 / 48) / 6)}
    assert TASKS["elicit"].floors == {
        "four languages learned, which one not": pytest.approx(-math.log(1 / 4) / 6)}


def test_bad_arguments_of_a_task_say_what_is_wanted():
    with pytest.raises(ValueError, match="split must be one of .*got 'test'"):
        TASKS["novel"].prompts(4, "test")
    with pytest.raises(ValueError, match="at least 1 prompt, got 0"):
        TASKS["novel"].prompts(0)
    with pytest.raises(ValueError, match="at least 1, got 0, 8"):
        TASKS["novel"].batches(0, 8, seed=0)
