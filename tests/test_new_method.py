"""The promise to whoever adds a method: one class, a line in METHODS, a line in RECIPES.

A method unknown to the package is registered for the length of these tests, in no other place; the
comparison, fine-tuning, the planner, saving and loading must take it from there.
"""
import multiprocessing.dummy
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from minipeft import PeftModel, get_peft_model
from minipeft.__main__ import main
from minipeft.adapter import Adapter, AdapterSet, find_modules
from minipeft.lab import compare, rates, runs, study
from minipeft.lab.runs import Job
from minipeft.nf4 import NF4Linear
from minipeft.peft_model import METHODS, Method
from minipeft.recipes import RECIPES, Recipe, adapt

STEPS = 3


@dataclass(frozen=True)
class ShiftConfig:
    peft_type: ClassVar[str] = "SHIFT"
    groups: int = 1                     # neighbouring outputs that share a number
    task_type: str | None = None
    inference_mode: bool = False

    def file_fields(self, model: nn.Module) -> dict:
        return {}


class Shift(Adapter):
    """y = base_layer(x) + b, behind every o_proj."""

    def __init__(self, base_layer: nn.Module, n: int, groups: int, dtype: torch.dtype, device):
        super().__init__(base_layer)
        self.groups, self.b = groups, nn.Parameter(torch.zeros(n, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.b.repeat_interleave(self.groups).to(y.dtype)


def shift_adapters(model: nn.Module, config: ShiftConfig, dtype: torch.dtype) -> AdapterSet:
    layers, width = find_modules(model, ["o_proj"]), model.config.hidden_size
    device = model.model.norm.weight.device
    return {path: Shift(layer, width // config.groups, config.groups, dtype, device)
            for path, layer in layers.items()}


def shift_tensors(adapters: AdapterSet) -> dict[str, Tensor]:
    """Its own file format: all layers in one tensor (L, n)."""
    return {"shifts": torch.stack([adapter.b for adapter in adapters.values()])}


@torch.no_grad()
def load_shift_tensors(adapters: AdapterSet, tensors: dict[str, Tensor]) -> None:
    for adapter, b in zip(adapters.values(), tensors["shifts"]):
        adapter.b.copy_(b)


@pytest.fixture(autouse=True)
def shift(monkeypatch):
    monkeypatch.setitem(METHODS, "SHIFT", Method(ShiftConfig, shift_adapters, shift_tensors,
                                                 load_shift_tensors))
    monkeypatch.setitem(RECIPES, "shift", Recipe("Shift", ShiftConfig, 2, (1e-2, 3e-2), 4, 1e-1,
                                                 four_bit=True))


def test_it_saves_and_loads_through_its_own_file_format(model, ids, tmp_path):
    peft_model = get_peft_model(model, ShiftConfig(2))
    with torch.no_grad():
        for p in peft_model.parameters():
            p.add_(torch.randn(p.shape) if p.requires_grad else 0)
    y = peft_model.eval()(ids)
    peft_model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(peft_model.unload(), tmp_path)
    assert torch.equal(again(ids), y)


@pytest.mark.parametrize("method, size, message", [
    ("nosuch", 4, "method must be one of 'full', 'lora'.*got 'nosuch'"),
    ("qlora", 0, "r must be a whole number of at least 1, got 0")])
def test_a_recipe_that_cannot_be_followed_leaves_the_model_as_it_was(model, method, size, message):
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        adapt(model, method, size, torch.bfloat16)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.lm_head.weight.dtype == torch.float32


def test_the_recipe_is_followed(model):
    adapted = adapt(model, "shift")
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), NF4Linear)
    assert adapted.get_nb_trainable_parameters()[0] == 2 * 32 // 2      # layers x width / size


@pytest.fixture
def in_this_process(few_documents, monkeypatch):
    """Workers that know the toy: threads, which share this process's METHODS and RECIPES; and few
    tokens of whatever is trained on, timed and scored."""
    for name, value in dict(LONG=(2, 16), TEXT=8).items():
        monkeypatch.setattr(compare, name, value)
    monkeypatch.setattr(study, "multiprocessing",
                        SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
    monkeypatch.setattr(study, "start_worker", lambda: None)
    for task in list(runs.STEPS):
        monkeypatch.setitem(runs.STEPS, task, STEPS)
    monkeypatch.setitem(RECIPES, "full", replace(RECIPES["full"], grid=(1e-3,)))


def test_it_is_swept_and_compared(in_this_process, monkeypatch, tmp_path, capsys):
    found = rates.sweep(["full", "shift"], ["elicit"], (100,), tmp_path, 1)
    assert found["chosen"]["elicit"]["shift"] in (1e-2, 3e-2)
    monkeypatch.setattr(compare, "learning_rate", lambda arm, task: found["chosen"][task][arm])
    assert main(["compare", "--methods", "shift", "--tasks", "elicit", "--quick", "--workers", "1",
                 "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert table.count("\nShift ") == 4          # summary, latency, costs, full size
    assert (tmp_path / "quality.png").stat().st_size > 5000


def test_its_runs_are_cached_under_its_recipe(monkeypatch):
    job = Job("shift", "elicit", 0, 1e-2, STEPS)
    before = compare.key(job)
    monkeypatch.setitem(RECIPES, "shift", replace(RECIPES["shift"], size=4))
    assert compare.key(job) != before


def test_it_is_planned(capsys):
    assert main(["memory", "--model", "llama-2-7b", "--method", "shift", "--r", "4"]) == 0
    adapter = next(line for line in capsys.readouterr().out.splitlines() if "adapter" in line)
    assert adapter.split()[1] == f"{4 * 32 * 4096 // 4:,}"       # float32, layers x width / size


def test_it_is_fine_tuned_and_answers(monkeypatch, tmp_path, capsys):
    pytest.importorskip("tokenizers")
    from test_finetune import load_tiny

    from minipeft.llm import base

    monkeypatch.setattr(base, "load", load_tiny)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 20, encoding="utf-8")
    out = tmp_path / "run"
    assert main(["finetune", "--data", str(data), "--method", "shift", "--steps", "4", "--every",
                 "2", "--dtype", "float32", "--out", str(out)]) == 0
    assert f"trained       {2 * 32 // 4} parameters" in capsys.readouterr().out
    assert main(["generate", "a", "--adapter", str(out), "--max-new-tokens", "2"]) == 0
