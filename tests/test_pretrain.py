import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from minipeft import GPT, GPTConfig
from minipeft.files import DATA
from minipeft.tiny_world import documents
from minipeft.tiny_world.pretrain import RECORD, load_base, pretrain, read_record, save_base, score
from minipeft.train import evaluate

# A loss is a float32 mean over thousands of tokens; other CPUs and thread counts sum in another
# order. 100 times the 1e-6 that this was seen to change it by.
SUM_ORDER = 1e-4
SEEDS = sorted(read_record())


@pytest.fixture(scope="module")
def short_run():
    return pretrain(0, steps=25)


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped record and of seed 0's weights."""
    for name in (RECORD, "tiny_gpt_seed0.safetensors"):
        shutil.copy(DATA / name, tmp_path)
    return tmp_path


def test_three_bases_ship_in_a_few_megabytes():
    assert SEEDS == ["0", "1", "2"]
    assert sum((DATA / entry["file"]).stat().st_size for entry in read_record().values()) < 6e6


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shipped_base_scores_what_its_record_says(seed):
    recorded = read_record()[seed]["validation"]
    for kind, measured in score(load_base(int(seed))).items():
        assert measured["loss"] == pytest.approx(recorded[kind]["loss"], abs=SUM_ORDER)
        assert measured["oracle"] == pytest.approx(recorded[kind]["oracle"], abs=1e-9)


@pytest.mark.parametrize("kind", [None, *documents.KINDS])
def test_no_base_beats_the_best_possible_loss_beyond_chance(kind):
    input_ids, labels, oracle = documents.validation(kind)
    logits = load_base(0)(input_ids).detach()
    nats = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none").sum(1)    # (B,)
    best = [-documents.log_prob(row[:k]) for row, k in
            zip(input_ids[:, 1:], (labels != -100).sum(1) - 2)]
    excess = nats.double() - torch.tensor(best, dtype=torch.double)
    # Gibbs' inequality holds for the mean over all documents; these are a sample of them
    assert excess.mean() > -3 * excess.std() / math.sqrt(len(excess))
    tokens = (labels[:, 1:] != -100).sum()
    assert evaluate(load_base(0), (input_ids, labels))[0] - oracle == pytest.approx(
        (excess.sum() / tokens).item(), abs=SUM_ORDER)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_base_speaks_all_four_languages_when_it_is_told_which(seed):
    base = read_record()[seed]["validation"]
    assert base["parrot_cued"]["loss"] - base["parrot_cued"]["oracle"] < 0.03


def test_a_few_steps_of_pretraining_lower_the_loss(short_run):
    _, report = short_run
    assert report["steps"] == 25 and report["tokens"] == 25 * 32 * 64
    # untrained: above the entropy of 400 equally likely words, ln 400 = 5.99 nats
    assert report["first_loss"] > 6 and report["last_loss"] < 4
    assert report["validation"]["all"]["loss"] < 4


def test_pretraining_for_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        pretrain(0, steps=0)


def test_the_recorded_command_starts_like_the_run_that_made_the_shipped_file(short_run):
    # same seed, so same weights and documents; 1e-3: normal_ goes through the platform's log, cos
    assert short_run[1]["first_loss"] == pytest.approx(read_record()["0"]["first_loss"], abs=1e-3)


def test_the_saved_base_is_the_scored_model_bitwise(short_run, tmp_path):
    model, report = short_run
    path = save_base(model, report, seed=0, folder=tmp_path)
    loaded = load_base(0, tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([RECORD, path.name])


def test_saving_another_seed_keeps_the_record_of_the_first(folder):
    before = read_record(folder)["0"]
    save_base(GPT(GPTConfig.preset("tiny")), {}, seed=7, folder=folder)
    assert read_record(folder)["0"] == before
    assert "7" in read_record(folder)


def test_loading_does_not_move_the_global_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_base(0)
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_or_damaged_file_is_refused_with_the_command_that_makes_it(folder):
    path = folder / "tiny_gpt_seed0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its sha256 must be .*pretrain --seed 0"):
        load_base(0, folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; .*pretrain --seed 0"):
        load_base(0, folder)


def test_an_unknown_seed_and_a_broken_record_say_what_to_do(folder):
    with pytest.raises(ValueError, match="bases of seeds 0.* got 99; .*pretrain --seed 99"):
        load_base(99, folder)
    (folder / RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_base(0, folder)
    (folder / RECORD).unlink()
    with pytest.raises(FileNotFoundError, match="no record of pretrained models"):
        load_base(0, folder)


def test_the_record_is_plain_json_with_the_command_and_the_checksum():
    record = json.loads((DATA / RECORD).read_text(encoding="utf-8"))
    for seed, entry in record.items():
        assert entry["command"] == f"python -m minipeft pretrain --seed {seed} --out data"
        assert len(entry["sha256"]) == 64
