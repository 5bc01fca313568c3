"""The data of the fine-tuning lesson: what is held out, and that it is what its generator makes."""
import importlib.util
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL

from minipeft import GPT

pytest.importorskip("tokenizers", reason="tokenizers is the optional extra minipeft[llm]")

FOLDER = Path(__file__).parent.parent / "data" / "tool_calls"
spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def lines(name: str) -> list[dict]:
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def calls(name: str) -> list[dict]:
    return [json.loads(line["completion"]) for line in lines(name)]


SETS = {"train": 2000, "test": 200, "validation": 100}


@pytest.mark.parametrize("name", SETS)
def test_the_files_are_what_the_generator_writes(name, tmp_path):
    generate.main(tmp_path)
    assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name, n", SETS.items())
def test_every_tool_has_its_share_and_no_request_occurs_twice(name, n):
    tools = [call["tool"] for call in calls(name)]
    assert len(tools) == n and len(set(tools)) == 10
    assert {tools.count(tool) for tool in tools} <= set(range(n // 10 - 15, n // 10 + 16))
    assert len({line["prompt"].lower() for line in lines(name)}) == n


def test_the_page_counts_what_there_is():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    widths = [len(values) for values in generate.SLOTS.values()]
    assert f"Between {min(widths)} and {max(widths):,} values a slot" in page
    assert [f"{len(lines(name)):,}" for name in ("train", "validation", "test")] == re.findall(
        r"`\w+\.jsonl` \(([\d,]+)", page)
    assert f"`ordinary.jsonl`: {len(lines('ordinary'))} short" in page
    assert len(lines("questions")) == 10 and "`questions.jsonl`: ten" in page


PAIRS = list(itertools.combinations(SETS, 2))


@pytest.mark.parametrize("name, other", PAIRS)
def test_no_two_sets_share_a_value(name, other):
    def values(name):
        return {(slot, value.lower()) for call in calls(name) for slot, value in call.items()
                if slot != "tool"}
    assert not values(name) & values(other)


@pytest.mark.parametrize("name, other", PAIRS)
def test_no_two_sets_share_a_phrasing(name, other):
    def skeletons(name):
        found = set()
        for line, call in zip(lines(name), calls(name)):
            text = line["prompt"]
            for slot in sorted(call.keys() - {"tool"}, key=lambda s: -len(call[s])):
                text = text.replace(call[slot], "*").replace(call[slot].capitalize(), "*")
            for opening in filter(None, generate.OPENINGS):
                text = text.removeprefix(opening).removeprefix(opening.capitalize())
            found.add(text.lower())
        return found
    assert not skeletons(name) & skeletons(other)


def test_every_value_of_an_answer_can_be_copied_from_the_request():
    for name in SETS:
        for line, call in zip(lines(name), calls(name)):
            text = line["prompt"].lower()
            assert all(value.lower() in text for slot, value in call.items() if slot != "tool")


# The script

sys.path.insert(0, str(FOLDER.parent.parent / "benchmarks"))
import tool_calls


class Bytes:
    """A tokenizer with a token a byte, and END as token 0."""

    def encode(self, text):
        ids = [byte % 60 + 1 for byte in text.encode()]
        return type("Encoding", (), {"ids": ids})

    def decode(self, ids):
        return " ".join(map(str, ids))

    def token_to_id(self, token):
        return 0


@pytest.mark.parametrize("loudness", [0.01, 3])
def test_answers_are_those_of_generate_one_request_at_a_time(loudness):
    torch.manual_seed(0)
    model = GPT(replace(SMALL, max_position_embeddings=400)).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 20           # so that the request decides the answer
        model.lm_head.weight[0] *= loudness              # how likely END is
    asked = [[{"role": "user", "content": text}] for text in ("ab", "cd", "wxyz", "axyz", "q")]
    said = tool_calls.answers(model, Bytes(), asked)
    assert len(set(said)) > 2
    lengths = set()
    for messages, answer in zip(asked, said):
        ids = torch.tensor([Bytes().encode(tool_calls.chat_text(messages)).ids])
        alone = model.generate(ids, 60, eos_token_id=0)[0, ids.shape[1]:].tolist()
        assert answer == Bytes().decode(alone[:alone.index(0)] if 0 in alone else alone)
        lengths.add(len(alone))
    assert (min(lengths) < 60) == (loudness > 1)


def test_right_token_by_token_is_right_by_greedy_decoding():
    torch.manual_seed(0)
    model, made = GPT(SMALL).eval(), []
    for number in range(12):                  # every other answer is what the model itself says
        asked = torch.randint(0, 61, (1, 6))
        ids = model.generate(asked, 4)[0].tolist() if number % 2 else (
            asked[0].tolist() + torch.randint(0, 61, (4,)).tolist())
        made.append((ids, [-100] * 6 + ids[6:]))
    decoded = [model.generate(torch.tensor([ids[:6]]), 4)[0].tolist() == ids for ids, _ in made]
    assert tool_calls.greedily_right(model, made) == decoded and 0 < sum(decoded) < 12
    assert tool_calls.answers(model, Bytes(), []) == []


def test_the_base_is_stored_with_its_machine_and_told_in_lines(monkeypatch, tmp_path, capsys):
    shots = [{"shots": 10, "right": 3, "n": 9, "prompt_tokens": 60.5}]
    monkeypatch.setattr(tool_calls, "score_base", lambda n: shots)
    monkeypatch.setattr(sys, "argv", ["tool_calls.py", "base", "--out", str(tmp_path / "new")])
    tool_calls.main()
    stored = json.loads((tmp_path / "new" / "base.json").read_text())
    assert stored["shots"] == shots and stored["machine"]["cores"] > 0
    assert capsys.readouterr().out == (
        "base model, 10 examples in the prompt (60 tokens): 3 of 9 right\n")
