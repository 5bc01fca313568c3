"""Pretrain the tiny GPT on the tiny world; ship it, and load what was shipped.

    python -m minipeft pretrain --seed 0 --out data     makes data/tiny_gpt_seed0.safetensors

Files: the weights in float16, and one tiny_gpt.json that says for each seed what the weights in the
file score on held-out documents of every kind, the best possible score, and the file's sha256.
"""

import hashlib
import time
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..files import DATA, check_keys, read_json, replacing, write_json
from ..gpt import GPT, GPTConfig
from ..train import TrainConfig, evaluate, train
from . import documents

RECORD = "tiny_gpt.json"
STEPS, ROWS, LENGTH = 1600, 32, 64    # of at most 3.3 M tokens
RECIPE = TrainConfig(lr=3e-3, warmup_steps=60, flat=0.5, betas=(0.9, 0.95), weight_decay=0.05)


def pretrain(seed: int, steps: int = STEPS, progress=None) -> tuple[GPT, dict]:
    """Train a tiny GPT from scratch; the model (rounded to float16) and what it scores.

    `seed` draws the initial weights and the documents; `progress` is passed on to `train`.
    """
    if steps < 1:
        raise ValueError(f"pretrain wants at least 1 step, got {steps}")
    model = tiny_gpt(seed)
    start = time.perf_counter()
    batches = documents.pretraining_batches(seed, ROWS, LENGTH)
    history = train(model, batches, RECIPE, steps, progress)
    seconds = time.perf_counter() - start
    model.load_state_dict(rounded(model.state_dict()))
    return model, {"steps": steps, "tokens": steps * ROWS * LENGTH, "seconds": round(seconds, 1),
                   "threads": torch.get_num_threads(), "torch": torch.__version__,
                   "first_loss": history.loss[0], "last_loss": history.loss[-1],
                   "validation": score(model)}


def tiny_gpt(seed: int) -> GPT:
    """An untrained tiny GPT; torch's global random numbers stay where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(GPTConfig.preset("tiny"))


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight as float16 would store it, so that the model that is scored is the one saved."""
    return {name: tensor.half().float() for name, tensor in state.items()}


def score(model: GPT) -> dict[str, dict[str, float]]:
    """Loss and best possible loss, in nats per token, by kind of document and for the mixture."""
    scores = {}
    for kind in (None, *documents.KINDS):
        input_ids, labels, oracle = documents.validation(kind)
        name = "all" if kind is None else kind
        scores[name] = {"loss": evaluate(model, (input_ids, labels))[0], "oracle": oracle}
    return scores


def save_base(model: GPT, report: dict, seed: int, folder: Path = DATA) -> Path:
    """Write the weights and this seed's entry of the record; returns the path of the weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = read_record(folder) if (folder / RECORD).exists() else {}
    content = save({name: t.half() for name, t in model.state_dict().items()},
                   metadata={"format": "pt"})
    path = folder / f"tiny_gpt_seed{seed}.safetensors"
    record[str(seed)] = {"file": path.name, "sha256": hashlib.sha256(content).hexdigest(),
                         "command": command(seed, folder.resolve().name), **report}
    with replacing(path) as part:
        part.write_bytes(content)
    write_json(folder / RECORD, dict(sorted(record.items())))
    return path


def command(seed: int, folder: Path | str) -> str:
    """What makes the base of that seed, and its entry in the record."""
    return f"python -m minipeft pretrain --seed {seed} --out {folder}"


def read_record(folder: Path = DATA) -> dict[str, dict]:
    """What is known of every shipped base, by seed (as a string)."""
    path = Path(folder) / RECORD
    if not path.exists():
        raise FileNotFoundError(f"no record of pretrained models at {path}; "
                                f"make one with: {command(0, folder)}")
    do = f"restore it, or delete it and type: {command(0, folder)}"
    record = read_json(path, do)
    for seed, entry in record.items():
        check_keys(entry, {"file": str, "sha256": str}, f"{path}: {seed}", do)
    return record


def load_base(seed: int = 0, folder: Path = DATA) -> GPT:
    """The shipped tiny GPT of that seed, float32, in evaluation mode; its checksum is verified."""
    record = read_record(folder)
    if str(seed) not in record:
        raise ValueError(f"there are bases of seeds {', '.join(record)}, got {seed!r}; "
                         f"make it with: {command(seed, folder)}")
    entry = record[str(seed)]
    path = Path(folder) / entry["file"]
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; restore it, or make it again with: "
                                f"{command(seed, folder)}")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != entry["sha256"]:
        raise ValueError(f"{path} is damaged or another file: its sha256 must be "
                         f"{entry['sha256']}, got {sha256}; restore it, or make it again with: "
                         f"{command(seed, folder)}")
    model = tiny_gpt(seed)
    model.load_state_dict({name: tensor.float() for name, tensor in load(content).items()})
    return model.eval()
