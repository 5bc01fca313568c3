"""The data of the fine-tuning lesson: what is held out, and that it is what its generator makes."""
import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "data" / "tool_calls"
spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def lines(name: str) -> list[dict]:
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def calls(name: str) -> list[dict]:
    return [json.loads(line["completion"]) for line in lines(name)]


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_files_are_what_the_generator_writes(name, tmp_path):
    generate.main(tmp_path)
    assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name, n", [("train", 2000), ("test", 200)])
def test_every_tool_has_its_share_and_no_request_occurs_twice(name, n):
    tools = [call["tool"] for call in calls(name)]
    assert len(tools) == n and len(set(tools)) == 10
    assert {tools.count(tool) for tool in tools} <= set(range(n // 10 - 15, n // 10 + 16))
    assert len({line["prompt"].lower() for line in lines(name)}) == n


def test_no_value_of_the_test_set_occurs_in_the_training_set():
    seen = {(slot, value) for call in calls("train") for slot, value in call.items()
            if slot != "tool"}
    tested = {(slot, value) for call in calls("test") for slot, value in call.items()
              if slot != "tool"}
    assert not seen & tested


def test_no_phrasing_of_the_test_set_occurs_in_the_training_set():
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
    assert not skeletons("train") & skeletons("test")


def test_every_value_of_an_answer_can_be_copied_from_the_request():
    for name in ("train", "test"):
        for line, call in zip(lines(name), calls(name)):
            text = line["prompt"].lower()
            assert all(value.lower() in text for slot, value in call.items() if slot != "tool")
