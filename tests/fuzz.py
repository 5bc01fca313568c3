"""Damage every kind of file that a command reads, and see what its reader does with it.

    python tests/fuzz.py --inputs 100000 --seed 7

A reader may take a file or refuse it: by a ValueError or OSError of one line that names the file.
Anything else is a fault: another exception, a line that does not say which file, more memory than
BOUND_MIB, an input that takes longer than HANG seconds. Prints one line of JSON; input `number` of
a kind depends on the seed alone, so that `--only KIND NUMBER` does it again.
"""
import argparse
import copy
import faulthandler
import json
import random
import struct
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path

import tiny_folder
import tiny_gguf
import torch

from minipeft import GPT, LoraConfig, PeftModel, get_peft_model
from minipeft.cli.finetune import checked
from minipeft.course import boxes
from minipeft.files import read_json
from minipeft.lab import memory
from minipeft.llm import chat, hf_config, load, run_files
from minipeft.llm.gguf import BLOCK
from minipeft.nf4 import QuantState, quantize_nf4
from minipeft.nf4.state import PACKED_KEY

try:
    import resource
except ImportError:              # Windows
    resource = None

BOUND_MIB = 64          # above what the undamaged files take, none of which is larger than 200 KB
HANG = 60.0             # seconds
LONGEST = 7000          # characters of a message: some quote a value whole, none the file
ODD = [None, True, False, 0, -1, 1, 3, 2.5, 1e308, 2**31, 2**62, 2**64, 10**30, "", "x", "4", "\0",
       "é" * 3000, [], {}, [0], [[]], {"": 0}, "llama", float("nan"), float("inf"), "\ud800"]
NUMBERS = [0, 1, 7, 8, 9, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**61,
           2**63 - 20, 2**63 - 1, 2**64 - 1]

# ---------------------------------------------------------------- damage


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to four changes that know nothing of the format."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, width = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8))
        if rng.random() < 0.5:                           # the beginning says what the rest is
            at = rng.randrange(min(len(content), 400) + 1)
        other = rng.randrange(len(content) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice(NUMBERS) & (1 << 8 * width) - 1
            content[at:at + width] = number.to_bytes(width, "little")
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at:at + rng.choice((1, 8, 50))]
        elif kind == 4:
            content[at:at] = rng.randbytes(rng.choice((1, 8, 50)))
        elif kind == 5:
            content[at:at] = content[other:other + rng.choice((1, 8, 200))]
        elif kind == 6:
            content[at:at] = rng.choice((b'"', b"{", b"}", b"[" * 3000, b",", b"\n", b"\xff", b"\0",
                                         b'{"a":' * 3000, b"\xef\xbb\xbf", b"9" * 5000, b"1e999"))
        else:
            content[at:at + 200] = content[other:other + 200]
    return bytes(content)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """One to three entries with another value, another name, or gone."""
    whole = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = whole
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            change(place, key, rng)
            break
    text = json.dumps(whole)
    return text.encode(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]))


def change(place, key, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[rng.choice(("x", "", str(key).upper(), f"{key} "))] = place.pop(key)
    elif kind == 2:
        deep = place[key]
        for _ in range(rng.choice((1, 70, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        place[key] = deep
    else:
        place[key] = copy.deepcopy(rng.choice(ODD))


def damaged_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header, or the JSON among its notes, says something else."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8:8 + length], content[8 + length:]
    if b'"history"' in header and rng.random() < 0.6:
        entries = json.loads(header)
        notes = entries["__metadata__"]
        notes["history"] = damaged_json(notes["history"].encode(), rng).decode("latin-1")
        header = json.dumps(entries).encode()
    else:
        header = damaged_json(header, rng)
    return struct.pack("<Q", len(header)) + header + body


def damaged_template(content: bytes, rng: random.Random) -> bytes:
    """A chat template with parts of its program moved, doubled or replaced."""
    words = content.decode().split(" ")
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(len(words))
        words[place:place + rng.randrange(3)] = rng.choice((
            [], [rng.choice(words)], ["{% for i in range(99999) %}"], ["{{ 'x' * 99999 }}"],
            ["{%"], ["}}"], ["~", "messages"], ["|", "tojson"], ["{{ 9 ** 9 ** 9 }}"], ["(("],
            ["{{ messages.__class__ }}"], ["not"], ["{% endfor %}"], ["\0"], ["{# "]))
    return " ".join(words).encode()


def damaged_gguf(content: bytes, rng: random.Random) -> bytes:
    """A whole GGUF file with other metadata or other tensors; `content` is not read."""
    metadata = rng.choice((tiny_gguf.metadata, tiny_gguf.pieces))()
    tensors = dict(rng.choice(TENSORS))
    for _ in range(rng.choice((1, 1, 2))):
        key, name = rng.choice(list(metadata)), rng.choice(list(tensors))
        shape, kind, content = tensors[name]
        what = rng.randrange(7)
        if what == 0:
            metadata[key] = rng.choice((
                0, 1, 7, 2**32 - 1, True, False, 0.0, float("nan"), 1e30, "", "x", "smollm",
                "llama-bpe", "qwen2", "gpt2", "llama", ["a"], ["a b", "c"], [0], [1] * 261,
                [3] * 261, ["\u2581" * k for k in range(261)], [1e38] * 261, [float("nan")] * 261))
        elif what == 1:
            metadata.pop(key)
        elif what == 2:
            metadata[rng.choice(("llama.x", "tokenizer.ggml.x", "x", "general.alignment"))] = (
                rng.choice((0, 3, 64, True, "x")))
        elif what == 3:
            metadata[key] = struct.pack("<I", rng.choice((7, 8, 9, 13))) + struct.pack(
                "<IQ", rng.randrange(14), rng.choice(NUMBERS)) * rng.choice((1, 2, 500))
        elif what == 4:
            tensors[name] = (tuple(rng.choice((0, 1, 32, 33, 2**20, 2**40, 2**63))
                                   for _ in range(rng.randrange(6))), kind, content)
        elif what == 5:
            tensors[name] = shape, rng.choice((*BLOCK, 6, 14, 2**32 - 1)), content
        else:
            tensors[rng.choice(("x", "blk.9.attn_q.weight", "blk.0.attn_q.bias", "",
                                "output.weight", "blk..weight"))] = tensors.pop(name)
    return tiny_gguf.gguf_bytes(metadata, tensors)


# ---------------------------------------------------------------- readers


TENSORS = [tiny_gguf.tensors(), *(tiny_gguf.tensors(kinds=[kind]) for kind in BLOCK)]


def base() -> GPT:
    torch.manual_seed(0)
    return GPT(tiny_gguf.CONFIG)


def make_files(folder: Path) -> None:
    """One undamaged file of every kind, in a folder each."""
    model = get_peft_model(base(), LoraConfig(4, task_type="CAUSAL_LM"))
    for kind in ("adapter_config.json", "adapter_model.safetensors"):
        model.save_pretrained(folder / kind)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    tensors = {f"{k}.{n}": p.clone() for k in ("parameter", "exp_avg", "exp_avg_sq")
               for n, p in trained.items()}
    history = {**{name: [1, 2] for name in run_files.STEP},
               "validation": [{"step": 2, "loss": 0.5, "exact_match": 0.25}]}
    recipe = {"method": "lora", "size": 4, "lr": 1e-3, "dtype": "float32", "recompute": False,
              "seed": 0}
    settings = {"model": "smollm2", "recipe": recipe,
                "schedule": dict.fromkeys(run_files.SCHEDULE, 2),
                "data": {"training": "a.jsonl", "validation": None, "max_length": 9}}
    state = quantize_nf4(torch.randn(8, 64), compress_statistics=True)[1].as_dict(packed=True)
    for kind in set(KINDS) - {"adapter_config.json", "adapter_model.safetensors"}:
        (folder / kind).mkdir()
    for kind in FOLDER:
        tiny_folder.write(folder / kind, template=None, shards=2)
        (folder / kind / "chat_template.jinja").write_text(tiny_folder.TEMPLATE)
        (folder / kind / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    run_files.write_checkpoint(folder / "checkpoint.safetensors",
                               tensors | {"rng": torch.get_rng_state()}, history)
    run_files.write_weights(base(), folder / "model.safetensors")
    full = json.dumps({"recipe": {"method": "full"}})
    (folder / "model.safetensors" / "run.json").write_text(full)
    (folder / "run.json" / "run.json").write_text(json.dumps(settings))
    tiny_gguf.write(folder / "a.gguf" / "a.gguf")
    (folder / "config.json" / "config.json").write_text(json.dumps(
        {**vars(tiny_gguf.CONFIG), "model_type": "llama", "hidden_act": "silu", "head_dim": 8,
         "architectures": ["LlamaForCausalLM"], "attention_bias": False}))
    (folder / "quant_state" / "quant_state").write_bytes(bytes(state[PACKED_KEY].tolist()))
    boxes.keep(folder / "quiz.json" / "quiz.json", "latency", "y", date(2026, 11, 26))
    (folder / "list.json" / "list.json").write_text(json.dumps(
        [{"question": "a", "answer": "b", "number": n} for n in range(3)]))
    turn = {"role": "user", "content": "hé"}, {"role": "assistant", "content": "b", "weight": 1}
    (folder / "data.jsonl" / "data.jsonl").write_text(
        json.dumps({"messages": [{"role": "system", "content": "S"}, *turn], "id": 1}))


BASE = base()


def load_adapter(path: Path) -> None:
    PeftModel.from_pretrained(BASE, path.parent).unload()


def read_state(path: Path) -> None:
    state = quantize_nf4(torch.ones(8, 64), compress_statistics=True)[1].as_dict(packed=True)
    content = torch.tensor(list(path.read_bytes()), dtype=torch.uint8)
    try:
        QuantState.from_dict(state | {PACKED_KEY: content})
    except ValueError as error:                      # a tensor: no file is known
        raise ValueError(f"{path}: {error}") from None


def read_history(path: Path) -> None:
    tensors, _ = run_files.read_checkpoint(path.parent)
    run_files.check_checkpoint(tensors, CHECKPOINT, path.parent)


def plan(path: Path) -> None:
    memory.plan(memory.Run(hf_config.read(path).config, "lora", 1, 1, 1))


def read_examples(path: Path) -> None:
    for messages in chat.read_jsonl(path):
        chat.encode_example(messages, lambda text: list(text.encode()))


def read_folder(path: Path) -> None:
    try:
        _, tokenizer = load(path.parent)
        tokenizer.chat_text([{"role": "user", "content": "the cat"}])
        tokenizer.encode("12 apples <|end|>")
    except (ValueError, OSError) as error:        # of two files that differ, either may be named
        if path.name in FOLDER and str(path.parent) in str(error).replace("\n", "?\n"):
            raise ValueError(f"{path}: {error}") from None
        raise


CHECKPOINT = {n: p for n, p in get_peft_model(base(), LoraConfig(4)).named_parameters()
              if p.requires_grad}
WORDS = dict(question=str, answer=str, number=int)
# file: (what reads it, ways to damage it beside that of bytes, its share of the inputs)
KINDS = {
    "a.gguf": (load, damaged_gguf, 6),
    "data.jsonl": (read_examples, damaged_json, 5),
    "adapter_config.json": (load_adapter, damaged_json, 3),
    "adapter_model.safetensors": (load_adapter, damaged_header, 3),
    "checkpoint.safetensors": (read_history, damaged_header, 3),
    "model.safetensors": (lambda path: run_files.load_trained(base(), path.parent), damaged_header,
                          2),
    "run.json": (lambda path: checked(run_files.read_settings(path.parent), path), damaged_json, 3),
    "config.json": (plan, damaged_json, 3),
    "list.json": (lambda path: read_json(path, wanted=list, keys=WORDS), damaged_json, 2),
    "quiz.json": (boxes.read, damaged_json, 2),
    "quant_state": (read_state, damaged_json, 2),
    "tokenizer.json": (read_folder, damaged_json, 2),
    "tokenizer_config.json": (read_folder, damaged_json, 1),
    "generation_config.json": (read_folder, damaged_json, 1),
    "chat_template.jinja": (read_folder, damaged_template, 2),
    "model.safetensors.index.json": (read_folder, damaged_json, 1),
    "model-00001-of-00002.safetensors": (read_folder, damaged_header, 2),
}
FOLDER = list(KINDS)[-6:]


def attempt(path: Path, read) -> str:
    """"taken", "refused", or what is wrong with how it was refused."""
    try:
        with warnings.catch_warnings(action="ignore"):
            read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        if path.name not in text or "\n" in text or len(text) > LONGEST:
            return f"a message that does not name the file in one line: {text[:300]!r}"
        return "refused"
    except (Exception, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "taken"


def fuzz(kind: str, number: int, seed: int, whole: bytes) -> bytes:
    rng = random.Random(f"{seed} {kind} {number}")
    damage = rng.choice((damaged_bytes, KINDS[kind][1]))
    try:
        return damage(whole, rng)
    except UnicodeEncodeError:                           # half a pair of surrogates, written raw
        return damaged_bytes(whole, rng)


def resident_mib() -> float:
    """The most that this process has had in memory."""
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def limit_memory() -> None:
    """A reader that asks for ten times the bound is told so, and does not take the machine down."""
    if resource is not None and sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = taken + 10 * BOUND_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(inputs: int, seed: int, only: tuple[str, int] | None) -> dict:
    counts, faults, slowest, shares = {}, [], 0.0, sum(share for *_, share in KINDS.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        whole = {kind: (folder / kind / kind).read_bytes() for kind in KINDS}
        for kind, (read, *_) in KINDS.items():
            assert attempt(folder / kind / kind, read) == "taken", kind
        before = resident_mib()
        limit_memory()
        for kind, (read, _, share) in KINDS.items():
            counts[kind] = {"taken": 0, "refused": 0}
            n = -(-inputs * share // shares)
            for number in range(n) if only is None else [only[1]] * (only[0] == kind):
                path = folder / kind / kind
                path.unlink()                            # the old bytes may be mapped into memory
                path.write_bytes(fuzz(kind, number, seed, whole[kind]))
                faulthandler.dump_traceback_later(HANG, exit=True)
                start = time.process_time()
                outcome = attempt(path, read)
                slowest = max(slowest, time.process_time() - start)
                if outcome in counts[kind]:
                    counts[kind][outcome] += 1
                else:
                    faults.append([kind, number, outcome])
        faulthandler.cancel_dump_traceback_later()
        return {"inputs": sum(sum(count.values()) for count in counts.values()) + len(faults),
                "faults": faults, "counts": counts, "slowest_seconds": slowest,
                "grown_mib": resident_mib() - before}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    only = arguments.only and (arguments.only[0], int(arguments.only[1]))
    print(json.dumps(run(arguments.inputs, arguments.seed, only)))
