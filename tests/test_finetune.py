"""Fine-tuning runs: data, steps, checkpoints, processes, commands, on a tiny random model."""
import copy
import functools
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL

from minipeft import GPT
from minipeft.files import read_tensors, save_tensors, write_json
from minipeft.llm import chat
from minipeft.llm.finetune import Run, RunRecipe, Schedule, finetune, parts, report, validate
from minipeft.llm.run_files import load_trained, new_folder, read_checkpoint, write_checkpoint
from minipeft.peft_model import PeftModel
from minipeft.recipes import RECIPES
from minipeft.train import IGNORE, accumulate


def encode(text: str) -> list[int]:
    """A token a byte, within the tiny model's vocabulary."""
    return [byte % SMALL.vocab_size for byte in text.encode()]


def tiny() -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL)


def examples(n: int, seed: int = 0) -> list[chat.Example]:
    """Random ids of 5 to 12 tokens; the last 3 are labelled."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        T = int(torch.randint(5, 13, (), generator=generator))
        ids = torch.randint(0, SMALL.vocab_size, (T,), generator=generator).tolist()
        made.append((ids, [IGNORE] * (T - 3) + ids[-3:]))
    return made


def started(folder: Path, method: str = "lora", lr: float = 1e-2, **schedule) -> Run:
    recipe = RunRecipe(method, None if method == "full" else 2, lr)
    sizes = dict(steps=6, batch_size=4, micro_batch=4, every=2, patience=9) | schedule
    new_folder(folder) if not (folder / "run.json").exists() else None
    write_json(folder / "run.json", {"recipe": {"method": method}})
    return Run(recipe.adapt(tiny()), recipe, Schedule(**sizes), folder)


def take(run: Run, steps: int = 99) -> dict:
    taken = finetune(run, examples(20), examples(6, seed=1))
    return list(itertools.islice(taken, steps))[-1]


# Data


def test_labels_are_what_the_assistant_says_and_the_end_of_its_turn():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"}]
    ids, labels = chat.encode_example(messages, lambda text: [ord(c) for c in text])
    assert "".join(map(chr, ids)) + "\n" == chat.chat_text(messages, add_generation_prompt=False)
    said = "".join(chr(label) for label in labels if label != IGNORE)
    assert said == "b<|im_end|>d<|im_end|>"
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels))


def test_a_prompt_is_encoded_as_it_will_be_when_the_model_answers():
    line = json.dumps({"prompt": "hi", "completion": "ho"})
    ids, labels = chat.encode_example(chat.parse_line(line, "here"), encode)
    asked = encode(chat.chat_text([{"role": "user", "content": "hi"}]))
    assert ids[:len(asked)] == asked and labels[:len(asked)] == [IGNORE] * len(asked)
    assert labels[len(asked):] == encode("ho<|im_end|>")


@pytest.mark.parametrize("line, message", [
    ('{"prompt": "a"', "line 2 is not valid JSON: .* at column 15; every line must be one object"),
    ('["a", "b"]', "line 2 must hold an object, got list; every line"),
    ('{"prompt": "a"}', "line 2 lacks completion; it has prompt; every line"),
    ('{"messages": []}', "line 2: messages must be a non-empty list"),
    ('{"prompt": "a", "completion": ""}', "line 2: what the assistant says must be a text"),
    ('{"prompt": 7, "completion": "b"}', "line 2: prompt must be a text, got 7"),
    ('{"messages": [{"role": "bot", "content": "x"}]}', "line 2: .*roles system, user, assistant"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: the last message must be")])
def test_a_line_that_is_no_example_is_named_by_its_number(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        chat.read_jsonl(path)


def turns(*messages, **record) -> str:
    """A line whose last message is an answer, unless it says otherwise."""
    ask = {"role": "user", "content": "a"}
    answer = {"role": "assistant", "content": "b"}
    return json.dumps({"messages": [ask, *(answer | m for m in messages or [{}])], **record})


DROPPED = {
    "a system turn beside messages": turns(system="S"), "a prompt beside them": turns(prompt="p"),
    "tools": turns(tools=[{"type": "function"}]), "functions": turns(functions=[{"name": "f"}]),
    "a weight of the record": turns(weight=0), "a half weight": turns(weight=0.5),
    "not to be trained": turns(train=False), "a label": turns(label=False), "a key": turns(x=0),
    "calls": turns({"tool_calls": [{"id": 1}]}), "a call": turns({"function_call": {"name": "f"}}),
    "a name": turns({"name": "Bo"}), "reasoning": turns({"reasoning_content": "hm"}),
    "a message not to be trained": turns({"train": False}), "no loss": turns({"loss": 0}),
    "an answer of a call": turns({"tool_call_id": "1"}), "a refusal": turns({"refusal": "no"}),
    "a weight of the user": turns({"role": "user", "weight": 0}, {}),
    "an instruction's input": '{"prompt": "a", "completion": "b", "input": "c"}',
    "a rejected answer": '{"prompt": "a", "completion": "b", "rejected": "c"}',
    "a weight of a pair": '{"prompt": "a", "completion": "b", "weight": 0}',
    "messages beside a pair": '{"prompt": "a", "completion": "b", "tools": [1]}',
}


@pytest.mark.parametrize("case", DROPPED)
def test_a_key_that_would_be_dropped_is_refused_with_its_line(case, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f"\n{DROPPED[case]}\n")
    with pytest.raises(ValueError, match="data.jsonl, line 2: the key .* is not known here"):
        chat.read_jsonl(path)


def test_notes_and_keys_that_hold_nothing_are_no_fault():
    line = turns({"tool_calls": None, "name": ""}, {"tool_calls": []}, id=7, source="web", tools=[],
                 metadata={"a": 1}, weight=None)
    assert len(chat.parse_line(line, "here")) == 3
    assert len(chat.parse_line('{"prompt": "a", "completion": "b", "input": "", "id": 1}', "")) == 2


def test_an_answer_of_weight_0_is_read_and_not_learned():
    messages = chat.parse_line(turns({"content": "WRONG", "weight": 0}, {"content": "right"},
                                     {"content": "so", "weight": 1}), "here")
    ids, labels = chat.encode_example(messages, lambda text: [ord(c) for c in text])
    assert "WRONG" in "".join(map(chr, ids))
    said = "".join(chr(label) for label in labels if label != IGNORE)
    assert said == "right<|im_end|>so<|im_end|>"
    for weight, message in ((0.5, "must be 0 or 1, got 0.5"), ("0", "must be 0 or 1, got '0'"),
                            (None, "must be 0 or 1, got None"), (0, "every answer has weight 0")):
        with pytest.raises(ValueError, match=f"line 3: .*{message}"):
            chat.parse_line(turns({"weight": weight}), "line 3")


def test_the_system_turn_of_a_pair_is_its_first_message():
    with_turn = chat.parse_line('{"prompt": "a", "system": "S", "completion": "b"}', "here")
    assert [m["role"] for m in with_turn] == ["system", "user", "assistant"]
    assert chat.chat_text(with_turn).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user")
    assert chat.parse_line('{"prompt": "a", "system": null, "completion": "b"}', "here") == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="what the system says must be a text"):
        chat.parse_line('{"prompt": "a", "system": 3, "completion": "b"}', "here")


PAIR = '{"prompt": "é", "completion": "b"}\n'
FILES = {
    "Latin-1": (PAIR.encode() + PAIR.encode("latin-1"), "line 2 .* must be UTF-8, got the byte 0x"),
    "UTF-16": (PAIR.encode("utf-16"), "line 1 .* looks like UTF-16; save it as UTF-8"),
    "UTF-16 without its mark": (PAIR.encode("utf-16-le"), "line 1 .* looks like UTF-16"),
    "an array": (b'[\n{"prompt": "a", "completion": "b"}\n]', "line 1 is not valid .*; every line"),
    "an array in a line": (b'[{"prompt": "a", "completion": "b"}]', "line 1 must hold an object,"),
    "two objects in a line": (b'{"a": 1} {"b": 2}', "line 1 .* Extra data at column 10; every lin"),
    "an object over two lines": (b'{"prompt":\n"a"}', "line 1 is not valid JSON: .* column 11; ev"),
    "a key twice": (b'{"prompt": "a", "completion": "b", "completion": "c"}', "the key completion"),
    "half a pair": (b'{"prompt": "\\ud800", "completion": "b"}', "line 1 .* surrogates not allowe"),
    "a deep list": (b'{"prompt": ' + b"[" * 100_000, "line 1 .* nested deeper than 64"),
    "parts": (turns({"content": [{"type": "text", "text": "b"}]}).encode(), "must be one text, go"),
    "no content": (turns({"content": None}).encode(), "what the assistant says must be a text"),
    "a list for a role": (turns({"role": ["user"]}).encode(), "must have one of the roles"),
    "text for a message": (b'{"messages": ["hi"]}', "must have one of the roles"),
    "a text for messages": (b'{"messages": "hi"}', "messages must be a non-empty list, got 'hi'"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_holds_something_else_is_refused_with_its_line(case, tmp_path):
    content, message = FILES[case]
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"data.jsonl, {'' if 'line' in message else '.*'}{message}"
                       ) as caught:
        chat.read_jsonl(tmp_path / "data.jsonl")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("empty", [0, 1])                # lines before the first example
def test_a_byte_order_mark_and_every_end_of_line_are_no_fault(encoding, end, empty, tmp_path):
    lines = [json.dumps({"prompt": "é\u2028", "completion": str(i)}, ensure_ascii=False)
             for i in range(3)]
    (tmp_path / "data.jsonl").write_text(end * empty + end.join([*lines, "", " "]), encoding,
                                         newline="")
    found = chat.read_jsonl(tmp_path / "data.jsonl")
    assert [(m[0]["content"], m[1]["content"]) for m in found] == [("é\u2028", c) for c in "012"]


def test_no_file_an_empty_file_one_example_or_only_long_ones_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        chat.read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no examples"):
        chat.read_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        chat.split(examples(1), 48, seed=0)
    with pytest.raises(ValueError, match="all 5 examples are longer than 4 tokens, the shortest"):
        chat.fitting(examples(5), 4)


def test_a_split_shares_no_example_and_loses_none():
    training, validation = chat.split(list(range(100)), 48, seed=0)
    assert len(validation) == 10 and sorted(training + validation) == list(range(100))


def test_an_epoch_takes_every_example_once_and_neighbours_in_length_together():
    lengths = torch.randint(5, 50, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    plan = chat.batch_plan(lengths, 4, seed=0)
    epochs = [[next(plan) for _ in range(16)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(64))
        padding = sum(max(lengths[i] for i in b) - lengths[j] for b in epoch for j in b)
        assert padding < 64 * 4          # unsorted batches of these lengths have about 14 each
    assert epochs[0] != epochs[1]


def test_padding_changes_no_loss():
    model, batch = tiny().eval(), examples(6)
    with torch.no_grad():
        alone = [F.cross_entropy(model(torch.tensor([ids]))[0, -4:-1], torch.tensor(ids[-3:]),
                                 reduction="sum") for ids, _ in batch]
    # float32 sums in another order
    assert validate(model, batch, 6)["loss"] == pytest.approx(sum(alone).item() / 18, rel=1e-5)


# Steps


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch():
    whole, cut = tiny(), tiny()
    a = accumulate(whole, parts(examples(7), 7))
    assert a == pytest.approx(accumulate(cut, parts(examples(7), 2)), rel=1e-5)
    for p, q in zip(whole.parameters(), cut.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)   # sums in another order


def test_exact_match_is_what_greedy_decoding_answers_without_a_fault():
    model, made = tiny().eval(), []
    for ids, labels in examples(12):
        if len(made) % 2:                # every other answer is the model's own
            ids = model.generate(torch.tensor([ids[:-3]]), 3)[0].tolist()
            labels = labels[:-3] + ids[-3:]
        made.append((ids, labels))
    right = [model.generate(torch.tensor([ids[:-3]]), 3)[0].tolist() == ids for ids, _ in made]
    assert 0 < sum(right) < 12
    assert validate(model, made, 5)["exact_match"] == sum(right) / 12


def test_recomputing_activations_changes_no_gradient():
    kept, again = (RunRecipe("lora", 2, 1e-3, recompute=r).adapt(tiny()) for r in (False, True))
    batches = parts(examples(4), 4)
    assert accumulate(kept, batches) == accumulate(again, batches)
    pairs = zip(kept.parameters(), again.parameters())
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs if p.requires_grad)


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_learns_is_kept_and_loads_as_it_was_at_its_best(method, tmp_path):
    run = started(tmp_path / "run", method, lr=3e-3 if method == "full" else 3e-2, steps=12)
    history = take(run)
    assert history["loss"][-1] < history["loss"][0]
    loaded = load_trained(tiny(), tmp_path / "run")
    assert validate(loaded, examples(6, seed=1), 4)["loss"] == pytest.approx(
        run.best()["loss"], rel=1e-5)          # the same sums; the file holds float32
    assert isinstance(loaded, PeftModel) == (method != "full")


@pytest.mark.parametrize("arguments, message", [
    (("nosuch", 8, 1e-3), "method must be one of .*'lora'"),
    (("lora", 0, 1e-3), "size must be a whole"),
    (("lora", 2, float("nan")), "lr must be positive and finite, got nan"),
    (("full", None, 1e-3, "bfloat16"), "full fine-tuning wants dtype float32")])
def test_an_impossible_recipe_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunRecipe(*arguments)


# Runs


def test_a_run_continues_from_its_checkpoint_bitwise(tmp_path):
    straight, broken = started(tmp_path / "a"), started(tmp_path / "b")
    take(straight)
    take(broken, steps=5)                          # killed after step 5; the checkpoint is of 4
    resumed = started(tmp_path / "b")
    resumed.restore()
    assert resumed.done == 4
    take(resumed)
    for key in ("loss", "grad_norm", "tokens", "validation"):
        assert resumed.history[key] == straight.history[key]
    (a, _), (b, _) = read_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "b")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    adapters = [(tmp_path / x / "adapter_model.safetensors").read_bytes() for x in "ab"]
    assert adapters[0] == adapters[1]


def test_the_random_numbers_continue_too(tmp_path):
    run = started(tmp_path / "a")
    take(run, steps=2)
    expected = torch.rand(3)
    run.restore()
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    run = started(tmp_path / "a")
    take(run, steps=2)
    (tmp_path / "a" / "checkpoint.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(ValueError, match="checkpoint.safetensors is damaged"):
        run.restore()


def first_parameter(change):
    def edit(tensors, history):
        key = min(key for key in tensors if key.startswith("parameter."))
        tensors[key] = change(tensors[key])
    return edit


def without(kind):
    def edit(tensors, history):
        for key in [key for key in tensors if key.startswith(kind)]:
            del tensors[key]
    return edit


CHECKPOINTS = {
    "one number for all": (first_parameter(lambda t: t[:1, :1].clone()), "must have shape"),
    "a row for all": (first_parameter(lambda t: t[:1].clone()), r"must have shape \(2, 64\), got"),
    "transposed": (first_parameter(lambda t: t.T.contiguous()), "must have shape"),
    "NaN": (first_parameter(lambda t: t * float("nan")), "must hold finite numbers"),
    "float64": (first_parameter(lambda t: t.double()), "must be of torch.float32, got torch.float"),
    "whole numbers": (first_parameter(lambda t: t.int()), "must hold floating-point numbers"),
    "no parameters": (without("parameter."), "8 keys missing, such as 'parameter"),
    "no moments": (without("exp_avg."), "8 keys missing, such as 'exp_avg."),
    "no random numbers": (without("rng"), "rng is no state of torch's random numbers"),
    "half of them": (lambda t, h: t.update(rng=t["rng"][:9].clone()), "rng is no state"),
    "other ones": (lambda t, h: t.update(rng=t["rng"] * 0), "rng is no state"),
    "as floats": (lambda t, h: t.update(rng=t["rng"].float()), "rng is no state"),
    "one tensor more": (lambda t, h: t.update(x=torch.ones(2)), "1 keys unexpected, such as 'x'"),
    "no losses": (lambda t, h: h.pop("loss"), "its history lacks loss"),
    "losses as a number": (lambda t, h: h.update(loss=3), "loss must be a list, got 3"),
    "a loss less": (lambda t, h: h["loss"].pop(), "has 1 losses and another number of grad_norm o"),
    "a loss as text": (lambda t, h: h.update(loss=["1", 2]), "entry 1 of its history: loss must b"),
    "half a token": (lambda t, h: h.update(tokens=[1, 0.5]), "entry 2 of its history: tokens must"),
    "no validation": (lambda t, h: h.update(validation=[]), "its history has none"),
    "half a validation": (lambda t, h: h.update(validation=[{"step": 2}]), "lacks loss, exact_mat"),
    "validations as texts": (lambda t, h: h.update(validation=["x"]), "must be an object, got 'x'"),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(damage, tmp_path):
    run = started(tmp_path / "a")
    take(run, steps=2)
    tensors, history = read_checkpoint(tmp_path / "a")
    tensors = {key: t.clone() for key, t in tensors.items()}
    edit, message = CHECKPOINTS[damage]
    edit(tensors, history)
    write_checkpoint(tmp_path / "a", tensors, history)
    fresh = started(tmp_path / "a")
    before = {name: t.clone() for name, t in fresh.model.state_dict().items()}
    state, history = torch.get_rng_state(), copy.deepcopy(fresh.history)
    with pytest.raises(ValueError, match=message) as caught:
        fresh.restore()
    assert "checkpoint.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), state) and fresh.history == history
    assert all(torch.equal(t, before[name]) for name, t in fresh.model.state_dict().items())


def test_a_checkpoint_without_a_history_or_with_half_of_one_is_refused(tmp_path):
    run = started(tmp_path / "a")
    take(run, steps=2)
    tensors, _ = read_checkpoint(tmp_path / "a")
    tensors = {key: t.clone() for key, t in tensors.items()}
    path = tmp_path / "a" / "checkpoint.safetensors"
    for notes in ({}, {"history": ""}, {"history": "[1]"}, {"history": '{"loss": [1'},
                  {"history": "[" * 9999}, {"history": '{"loss": [NaN]}'}):
        save_tensors(path, tensors, notes)
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged: its history"):
            run.restore()


FULL = {
    "a weight less": (lambda t: t.pop("model.norm.weight"), "1 keys missing, such as 'model.norm"),
    "a weight more": (lambda t: t.update(x=torch.ones(2)), "1 keys unexpected, such as 'x'"),
    "another shape": (lambda t: t.update({"model.norm.weight": torch.ones(1)}), "must have shape"),
    "a prefix": (lambda t: [t.update({f"module.{k}": t.pop(k)}) for k in list(t)], "keys missing"),
    "NaN": (lambda t: t["model.norm.weight"].fill_(float("nan")), "must hold finite numbers"),
}


@pytest.mark.parametrize("damage", FULL)
def test_the_weights_of_a_full_run_load_strictly(damage, tmp_path):
    take(started(tmp_path / "a", "full", lr=1e-3), steps=2)
    path = tmp_path / "a" / "model.safetensors"
    tensors = {key: t.clone() for key, t in read_tensors(path)[0].items()}
    edit, message = FULL[damage]
    edit(tensors)
    save_tensors(path, tensors, {"format": "pt"})
    model, before = tiny(), tiny().state_dict()
    with pytest.raises(ValueError, match=f"model.safetensors.*{message}"):
        load_trained(model, tmp_path / "a")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors"):
        load_trained(model, tmp_path / "a")


def test_a_run_without_progress_ends_early_and_keeps_its_best(tmp_path):
    run = started(tmp_path / "a", lr=1e-12, steps=50, every=1, patience=3)
    run.validate = lambda examples: run.history["validation"].append(
        {"step": run.done, "loss": 1.0 + run.done, "exact_match": 0.0})
    take(run)
    assert run.done == 4 and run.best()["step"] == 1          # 1 and three without a better loss
    assert report(run, {})["stopped_early"]


def test_a_loss_that_is_not_finite_stops_before_anything_changes(tmp_path):
    run = started(tmp_path / "a")
    take(run, steps=2)
    with torch.no_grad():
        list(run.trained.values())[-1].fill_(float("nan"))
    before = copy.deepcopy(list(run.trained.values()))
    with pytest.raises(FloatingPointError, match="step 3: the loss is nan.*learning rate below"):
        take(run)
    for parameter, was in zip(run.trained.values(), before):
        torch.testing.assert_close(parameter, was, rtol=0, atol=0, equal_nan=True)
    tensors, history = read_checkpoint(tmp_path / "a")
    assert len(history["loss"]) == 2 and all(t.isfinite().all() for t in tensors.values())


def test_a_validation_that_is_not_finite_ends_the_run_and_keeps_nothing_of_it(tmp_path):
    run = started(tmp_path / "a", every=1)
    take(run, steps=1)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with torch.no_grad():
        list(run.trained.values())[-1].fill_(1e38)              # finite, but not what it computes
    with pytest.raises(FloatingPointError, match="validation loss after step 1 is nan.*before"):
        run.validate(examples(6, seed=1))
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == kept
    assert [math.isfinite(s["loss"]) for s in run.history["validation"]] == [True]


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; choose another folder"):
        new_folder(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds another run; .*--resume"):
        new_folder(tmp_path)
    with pytest.raises(NotADirectoryError):
        new_folder(tmp_path / "notes.txt")


def test_the_report_counts_the_bytes_of_gradients_of_the_adapter_and_of_the_whole_model(tmp_path):
    run = started(tmp_path / "a")
    take(run)
    counts = report(run, {})["gradient_bytes_per_step"]
    assert counts == {"this": 4 * sum(p.numel() for p in run.trained.values()),
                      "full": 4 * sum(p.numel() for p in tiny().parameters())}


PROCESS = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist
from pathlib import Path
from minipeft.cli.finetune import start_processes
from test_finetune import started, take
torch.set_flush_denormal(True); torch.set_num_threads(1)
start_processes()
folder = Path({folder!r}) / str(dist.get_rank())
history = take(started(folder, batch_size=5, micro_batch=2))
(folder / "loss").write_text(repr((history["loss"], history["validation"])))
dist.destroy_process_group()
threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]    # Linux
(folder / "threads").write_text(repr(threads))
"""


def test_two_processes_take_the_same_steps_as_one_with_the_same_batches(tmp_path):
    alone = take(started(tmp_path / "alone", batch_size=5, micro_batch=2))
    script = tmp_path / "process.py"
    script.write_text(PROCESS.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2", script], capture_output=True, timeout=300,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for rank in "01":
        loss, validation = eval((tmp_path / rank / "loss").read_text())
        assert loss == pytest.approx(alone["loss"], rel=1e-4)      # float32 sums in another order
        assert validation[-1]["loss"] == pytest.approx(alone["validation"][-1]["loss"], rel=1e-4)
        assert "gloo" not in (tmp_path / rank / "threads").read_text()    # they could abort the end
    assert (tmp_path / "0" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "1" / "checkpoint.safetensors").exists()      # one process writes


# The commands, with the tiny model in SmolLM2's place


class Tokenizer:
    """As `tokenizers.Tokenizer`: a token a byte; that of "<" ends an answer."""

    def encode(self, text, add_special_tokens):
        return type("Encoding", (), {"ids": encode(text)})

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + i % 26) for i in ids)

    def get_added_tokens_decoder(self):
        return {i: SimpleNamespace(content=w, special=True) for i, w in enumerate(chat.CONTROL)}


def load_tiny(model, dtype=torch.float32, four_bit=False):
    """In the place of base.load."""
    from minipeft.llm.tokenizer import FolderTokenizer

    torch.manual_seed(0)
    tokenizer = FolderTokenizer(Path("a folder"), Tokenizer(), {}, chat.ChatML(), (60,))
    return GPT(replace(SMALL, max_position_embeddings=256)).to(dtype).eval(), tokenizer


@pytest.fixture
def command(monkeypatch, tmp_path):
    pytest.importorskip("tokenizers")
    from minipeft.__main__ import main
    from minipeft.llm import base

    monkeypatch.setattr(base, "load", load_tiny)
    monkeypatch.setattr(base, "write_transformers_files", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    with open("data.jsonl", "w", encoding="utf-8") as file:
        for i in range(30):
            file.write(json.dumps({"prompt": f"say {i}", "completion": str(i)}) + "\n")
    return main


FINETUNE = "finetune --data data.jsonl --out run --steps 4 --every 2 --size 2 --dtype float32"


def test_a_run_leaves_an_adapter_a_report_and_curves_and_says_so(command, capsys):
    assert command(FINETUNE.split()) == 0
    assert {p.name for p in Path("run").iterdir()} == {
        "run.json", "checkpoint.safetensors", "adapter_config.json", "adapter_model.safetensors",
        "report.json", "curves.png"}
    kept = json.loads(Path("run/report.json").read_text())
    assert kept["steps"] == 4 and kept["settings"]["data"]["examples"] == [27, 3]
    out, err = capsys.readouterr()
    assert "27 training, 3 validation, 0 left out" in out and "tokens/s" in err
    assert command(["generate", "say", "3", "--adapter", "run", "--compare",
                    "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("base     ")
    assert command(["merge", "run", "--out", "merged"]) == 0
    assert (Path("merged") / "model.safetensors").exists()


def test_a_second_run_into_the_folder_is_refused_and_resume_wants_no_settings(command, capsys):
    assert command(FINETUNE.split()) == 0
    assert command(FINETUNE.split()) == 1
    assert "run holds another run" in capsys.readouterr().err
    assert command("finetune --resume --out run".split()) == 0
    with pytest.raises(SystemExit) as stop:
        command("finetune --resume --out run --lr 0.1".split())
    assert stop.value.code == 2 and "leave out lr" in capsys.readouterr().err
    Path("data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    assert command("finetune --resume --out run".split()) == 1
    assert "data.jsonl has changed since the run began" in capsys.readouterr().err


def test_a_run_is_resumed_from_another_folder(command, monkeypatch):
    shutil.copy("data.jsonl", "held out.jsonl")
    assert command([*FINETUNE.split(), "--validation", "held out.jsonl"]) == 0
    kept = json.loads(Path("run/run.json").read_text(encoding="utf-8"))["data"]
    assert kept["training"] == str(Path("data.jsonl").absolute())
    assert kept["validation"] == str(Path("held out.jsonl").absolute())
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert command("finetune --resume --out ../run".split()) == 0


def edited(*path, value=None, extra=None):
    """run.json with the entry at `path` replaced, taken away (value None) or joined by `extra`."""
    def edit(settings):
        *above, last = path
        for key in above:
            settings = settings[key]
        settings[last] = value
        if value is None:
            del settings[last]
        if extra:
            settings[extra] = 1
        return None
    return edit


SETTINGS = {
    "not an object": (b"[]", "must hold an object, got list"),
    "null": (b"null", "must hold an object, got NoneType"),
    "nothing": (b"", "it is empty"),
    "not UTF-8": (b"\xff{}", "it must be UTF-8, got the byte 0xff"),
    "a deep list": (b"[" * 100_000, "nested deeper than 64"),
    "no keys": (b"{}", "run.json lacks model, recipe, schedule, data; it has nothing"),
    "an empty recipe": (edited("recipe", value={}), "run.json: recipe lacks method, size, lr"),
    "a recipe as list": (edited("recipe", value=[1]), "run.json: recipe must be an object, got .1"),
    "no data": (edited("data"), "run.json lacks data"),
    "no seed": (edited("recipe", "seed"), "run.json: recipe lacks seed"),
    "no steps": (edited("schedule", "steps"), "run.json: schedule lacks steps"),
    "no training": (edited("data", "training"), "run.json: data lacks training"),
    "training as number": (edited("data", "training", value=3), "training must be a text, got 3"),
    "length as text": (edited("data", "max_length", value="9"), "max_length must be a whole numbe"),
    "another method": (edited("recipe", "method", value="ia3"), "run.json: method must be one of"),
    "another model": (edited("model", value="gpt-7"), "run.json: model must be smollm2, or the p"),
    "a model without its sum": (edited("model", value="/a"), "its model_sha256, got '/a' and None"),
    "size 0": (edited("recipe", "size", value=0), "run.json: size must be a whole number of at le"),
    "another size": (edited("recipe", "size", value=3), "checkpoint.safetensors: .* must have sha"),
    "lr 0": (edited("recipe", "lr", value=0), "run.json: lr must be positive and finite, got 0"),
    "lr as text": (edited("recipe", "lr", value="1"), "lr must be a number or a whole number, got"),
    "another dtype": (edited("recipe", "dtype", value="int8"), "run.json: dtype must be one of"),
    "every 0": (edited("schedule", "every", value=0), "run.json: every must be a whole number of"),
    "half a step": (edited("schedule", "steps", value=4.5), "steps must be a whole number, got 4"),
    "a key more": (edited("recipe", "lr", value=1e-3, extra="x"), "recipe has the unknown key x"),
    "an order more": (edited("schedule", "every", value=2, extra="x"), "schedule has the unknown"),
}


def test_a_damaged_run_json_is_one_line_that_names_it_and_leaves_the_run_as_it_was(command, capsys):
    assert command(FINETUNE.split()) == 0
    whole = Path("run/run.json").read_text(encoding="utf-8")
    for damage, message in SETTINGS.values():
        if callable(damage):
            settings = json.loads(whole)
            damage(settings)
            damage = json.dumps(settings).encode()
        Path("run/run.json").write_bytes(damage)
        kept = {p.name: p.read_bytes() for p in Path("run").iterdir()}
        capsys.readouterr()
        assert command("finetune --resume --out run".split()) == 1, message
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and re.search(message, err), err
        assert "run.json" in err or "checkpoint.safetensors" in err, err
        assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == kept


@pytest.mark.parametrize("content, message", [
    ("{}", "lacks recipe"), ('{"recipe": {}}', "recipe lacks method"),
    ('{"recipe": {"method": "ia3"}}', "must name a method, one of full, lora, .* got 'ia3'"),
    ('{"recipe": {"method": ["lora"]}}', "method must be a text"), ("[" * 9999, "nested deeper")])
def test_generate_and_merge_name_the_run_json_that_they_cannot_read(content, message, command,
                                                                    capsys):
    assert command(FINETUNE.split()) == 0
    Path("run/run.json").write_text(content)
    for argv in (["generate", "hi", "--adapter", "run"], ["merge", "run", "--out", "merged"]):
        capsys.readouterr()
        assert command(argv) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and re.search(f"run.json.*{message}", err), err


def test_what_cannot_be_merged_leaves_no_folder(command, capsys):
    assert command([*FINETUNE.split(), "--method", "prompt"]) == 0
    assert command(["merge", "run", "--out", "merged"]) == 1
    assert "cannot be merged" in capsys.readouterr().err and not Path("merged").exists()


# What goes wrong, and what it leaves


def contents(folder=".") -> set[str]:
    return {p.name for p in Path(folder).iterdir()}


@pytest.mark.parametrize("wrong, message", [
    ("--method prompt --size 300", "at most 256 positions"),
    ("--method prefix --size 300", "at most 256 positions"),
    ("--method prompt --size 100000000000000", "at most 256 positions"),
    ("--method lora --size 33", "r must be at most"),
    ("--method houlsby --size 33", "bottleneck_size must be at most"),
    ("--max-length 3", "examples are longer than 3 tokens"),
    ("--lr nan", "lr must be positive and finite, got nan"),
    ("--lr inf", "lr must be positive and finite, got inf"),
    ("--lr 0", "lr must be positive and finite, got 0"),
    ("--size 0", "size must be a whole number of at least 1, got 0"),
    ("--method full", "full fine-tuning has no size, got 2"),
    ("--steps 0", "steps must be a whole number of at least 1, got 0"),
    ("--batch-size 0", "batch_size must be a whole number of at least 1, got 0"),
    ("--micro-batch 0", "micro_batch must be a whole number of at least 1, got 0"),
    ("--every 0", "every must be a whole number of at least 1, got 0"),
    ("--patience 0", "patience must be a whole number of at least 1, got 0"),
    ("--lr 1e30", "there is no checkpoint in run yet"),
    ("--data none.jsonl", "no data file"),
])
def test_a_run_that_fails_before_its_first_step_does_not_block_the_corrected_command(
        wrong, message, command, capsys):
    before = contents()
    assert command([*FINETUNE.split(), *wrong.split()]) == 1
    err = capsys.readouterr().err
    assert message in err and err.splitlines()[-1].startswith("minipeft finetune: ")
    assert contents() == before
    assert command(FINETUNE.split()) == 0


def test_a_folder_in_which_another_run_is_at_work_is_refused(command, capsys):
    from minipeft.folders import locked
    assert command(FINETUNE.split()) == 0
    kept = {name: (Path("run") / name).read_bytes() for name in contents("run")}
    for folder, line in (("run", "finetune --resume --out run"), ("new", f"{FINETUNE} --out new"),
                         ("merged", "merge run --out merged")):
        Path(folder).mkdir(exist_ok=True)
        with locked(Path(folder)):
            assert command(line.split()) == 1
        assert f"another process is at work in {folder}" in capsys.readouterr().err
    assert {name: (Path("run") / name).read_bytes() for name in contents("run")} == kept
    assert contents("new") == contents("merged") == set()


@pytest.mark.parametrize("step, kept", [(1, "there is no checkpoint in run yet"),
                                        (3, "the checkpoint in run is of step 2")])
def test_an_interrupted_run_says_how_it_goes_on_and_does(step, kept, command, capsys, monkeypatch):
    whole = Run.step

    def interrupted(run, examples):
        if run.done + 1 == step:
            raise KeyboardInterrupt
        whole(run, examples)

    monkeypatch.setattr(Run, "step", interrupted)
    assert command(FINETUNE.split()) == 1
    err = capsys.readouterr().err
    assert kept in err and "python -m minipeft finetune --resume --out run\n" in err
    monkeypatch.setattr(Run, "step", whole)
    assert command("finetune --resume --out run".split()) == 0
    assert command([*FINETUNE.split(), "--out", "unbroken"]) == 0
    name = "adapter_model.safetensors"
    assert (Path("run") / name).read_bytes() == (Path("unbroken") / name).read_bytes()


@pytest.mark.parametrize("spoil", ["parameter", "exp_avg", "exp_avg_sq"])
def test_a_state_that_is_not_finite_is_not_written_over_a_good_checkpoint(spoil, tmp_path):
    run = started(tmp_path / "a", every=1)
    take(run, steps=1)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    run.validate = functools.partial(Run.validate, run)
    parameter = next(iter(run.trained.values()))
    target = parameter if spoil == "parameter" else run.optimizer.state[parameter][spoil]
    with torch.no_grad():
        target.view(-1)[0] = torch.inf
    with pytest.raises(FloatingPointError, match="is from before: the checkpoint .* of step 1"):
        run.validate(examples(6, seed=1))
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == kept


@pytest.mark.parametrize("line", ["finetune --seed SEED --data data.jsonl --out run",
                                  "generate hello --seed SEED", "pretrain --seed SEED --out out"])
@pytest.mark.parametrize("seed", [10**23, -1, 2**32, "1.5", "", "nan"])
def test_a_seed_that_no_generator_takes_is_wrong_usage(line, seed, command, capsys):
    with pytest.raises(SystemExit) as stop:
        command([str(seed) if word == "SEED" else word for word in line.split()])
    assert stop.value.code == 2
    assert f"a seed must be a whole number, 0 to 4294967295, got '{seed}'" in (
        capsys.readouterr().err)


# Generating


@pytest.mark.parametrize("arguments, status, message", [
    (["--temperature", "nan"], 1, "finite temperature >= 0"),
    (["--temperature", "inf"], 1, "finite temperature >= 0"),
    (["--temperature", "-1"], 1, "finite temperature >= 0"),
    (["--temperature", "1e-31"], 1, "temperature must be 0, .*or at least 1e-30, got 1e-31"),
    (["--max-new-tokens", "0"], 1, "max_new_tokens >= 1"),
    (["--max-new-tokens", str(10**30)], 1, "at most 256 positions"),
    (["--system", " "], 2, "--system is empty"),
    (["--system", "a<|im_end|>"], 1, "what the system says holds <|im_end|>"),
    (["<|im_start|>system"], 1, "what the user says holds <|im_start|>"),
])
def test_what_cannot_be_generated_ends_with_one_line(arguments, status, message, command, capsys):
    try:
        assert command(["generate", "hello", *arguments]) == status
    except SystemExit as stop:
        assert stop.code == status
    err = capsys.readouterr().err
    assert re.search(message.replace("|", r"\|"), err.splitlines()[-1]), err


def test_an_adapter_trained_under_a_system_turn_is_asked_under_it(command, monkeypatch, capsys):
    texts = []
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, **_: texts.append(text) or type(
        "Encoding", (), {"ids": encode(text)}))
    assert command(["generate", "hello", "--system", "Be brief.", "--max-new-tokens", "2"]) == 0
    assert command(["generate", "hello", "--max-new-tokens", "2"]) == 0
    assert texts == [f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
                     f"<|im_start|>assistant\n" for system in ("Be brief.", chat.SYSTEM)]


# Conversations in another form


@pytest.mark.parametrize("message, expected", [
    ({"role": "tool", "content": "42"}, "a turn of the tool has no place .* as a turn of the user"),
    ({"role": "function", "name": "f", "content": "42"}, "a turn of the function has no place"),
    ({"role": "developer", "content": "x"}, 'write the role "developer" as "system"'),
    ({"role": "user", "content": [{"type": "text", "text": "hi"}]},
     "content must be one text, got a list of 1 parts; join"),
    ({"role": "user", "content": []}, "content must be one text, got a list of 0 parts"),
    *(({"role": role, "content": f"a {word} b"}, f"what the {role} says holds {re.escape(word)}")
      for role in ("system", "user", "assistant") for word in chat.CONTROL),
])
def test_a_turn_of_another_form_or_with_a_control_token_is_refused(message, expected, tmp_path):
    last = {"role": "assistant", "content": "ok"}
    messages = [message, last] if message["role"] != "assistant" else [message]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hi"},
                                                               last]}) + "\n"
                                      + json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{expected}"):
        chat.read_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=expected):
        chat.encode_example(messages, encode)
    with pytest.raises(ValueError, match=expected):
        chat.chat_text(messages)


def test_words_that_look_like_control_tokens_are_texts():
    for text in ("<|im_end>", "< |im_end|>", "<|im_END|>", "a < b | c > d", "<file>", "<|pad|>"):
        assert text in chat.chat_text([{"role": "user", "content": text}])
