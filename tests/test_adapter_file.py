"""An adapter's two files: HuggingFace PEFT's keys and shapes, written whole or not at all."""
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minipeft import (GPT, HoulsbyConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                      PromptTuningConfig, TaskType, files, get_peft_model)
from minipeft.peft_model import METHODS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.{}."
C, F, KV, L, P = 32, 64, 16, 2, 5       # of SMALL: width, MLP width, keys' width, layers; a P

# written down from files of HF PEFT 0.21 (Houlsby, which it lacks: the same scheme)
SHAPES = {
    "lora": (LoraConfig(r=4), {
        LAYER.format(i) + f"self_attn.{name}.lora_{m}.weight": shape
        for i in range(L) for name, m, shape in [
            ("q_proj", "A", (4, C)), ("q_proj", "B", (C, 4)),
            ("v_proj", "A", (4, C)), ("v_proj", "B", (KV, 4))]}),
    "prompt": (PromptTuningConfig(P), {"prompt_embeddings": (P, C)}),
    "prefix": (PrefixTuningConfig(P), {"prompt_embeddings": (P, L * 2 * KV)}),
    "prefix projection": (PrefixTuningConfig(P, True, 24),
                          {"prompt_embeddings": (P, L * 2 * KV)}),
    "houlsby": (HoulsbyConfig(6), {
        LAYER.format(i) + f"{place}.adapter_{name}": shape
        for i in range(L) for place in ("self_attn", "mlp") for name, shape in [
            ("down.weight", (6, C)), ("down.bias", (6,)),
            ("up.weight", (C, 6)), ("up.bias", (C,))]}),
}


def read_config(folder):
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def test_every_methods_file_is_written_down():
    written = {config.peft_type for config, _ in SHAPES.values()}
    assert written == set(METHODS), "SHAPES: the keys and shapes of a method's file"


@pytest.mark.parametrize("method", SHAPES)
def test_the_file_has_hf_pefts_keys_and_shapes(method, model, tmp_path):
    config, shapes = SHAPES[method]
    get_peft_model(model, config).save_pretrained(tmp_path / "new" / "folder")
    tensors = load_file(tmp_path / "new" / "folder" / TENSORS)
    assert {key: tuple(t.shape) for key, t in tensors.items()} == shapes
    with safe_open(tmp_path / "new" / "folder" / TENSORS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("config, entries", [
    (LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, use_rslora=True, init_lora_weights=True,
                task_type=TaskType.CAUSAL_LM),
     dict(peft_type="LORA", r=4, lora_alpha=16, lora_dropout=0.1, use_rslora=True, bias="none",
          target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", fan_in_fan_out=False)),
    (PromptTuningConfig(P, "TEXT", "a b", lambda text: [1, 2]),
     dict(peft_type="PROMPT_TUNING", num_virtual_tokens=P, task_type="CAUSAL_LM", token_dim=C,
          num_layers=L, num_attention_heads=4, num_transformer_submodules=1)),
    (PrefixTuningConfig(P, True, 24),
     dict(peft_type="PREFIX_TUNING", num_virtual_tokens=P, task_type="CAUSAL_LM", token_dim=KV,
          num_layers=L, num_attention_heads=2, num_transformer_submodules=1)),
    (HoulsbyConfig(6, "relu"),
     dict(peft_type="HOULSBY", bottleneck_size=6, non_linearity="relu", task_type=None)),
], ids=lambda value: type(value).__name__)
def test_the_config_says_what_to_compute_and_not_how_it_began(config, entries, model, tmp_path):
    """So HF PEFT needs no tokenizer to load a prompt that began as text."""
    get_peft_model(model, config).save_pretrained(tmp_path)
    assert read_config(tmp_path) == entries | dict(inference_mode=True,
                                                   base_model_name_or_path=None)


def test_a_prefix_lies_layer_by_layer_keys_before_values_heads_within(model, tmp_path):
    peft_model = get_peft_model(model, PrefixTuningConfig(P))
    for i, adapter in enumerate(peft_model.adapter_sets["default"].values()):
        with torch.no_grad():
            adapter.prefix.weight[:, :KV] = 10 * i + 1       # keys
            adapter.prefix.weight[:, KV:] = 10 * i + 2       # values
    peft_model.save_pretrained(tmp_path)
    row = load_file(tmp_path / TENSORS)["prompt_embeddings"][0].tolist()
    assert row == KV * [1] + KV * [2] + KV * [11] + KV * [12]


def test_targets_that_one_name_cannot_say_are_saved_as_paths(model, ids, tmp_path):
    config = LoraConfig(r=4, target_modules=["layers.1.self_attn.q_proj"])
    peft_model = get_peft_model(model, config)
    peft_model.save_pretrained(tmp_path)
    assert read_config(tmp_path)["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    loaded = PeftModel.from_pretrained(peft_model.unload(), tmp_path)
    assert list(loaded.adapter_sets["default"]) == ["model.layers.1.self_attn.q_proj"]


def test_all_linear_is_saved_as_names(model, tmp_path):
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path)
    assert read_config(tmp_path)["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_every_set_has_its_folder_and_the_same_files_whichever_is_in_place(model, tmp_path):
    peft_model = get_peft_model(model, LoraConfig(r=4))
    peft_model.add_adapter("second", HoulsbyConfig(6))
    peft_model.save_pretrained(tmp_path / "a")
    peft_model.set_adapter("second")        # LoRA's targets now lie inside Houlsby's wrappers
    peft_model.save_pretrained(tmp_path / "b")
    with peft_model.disable_adapter():
        peft_model.save_pretrained(tmp_path / "c")
    for name in ("", "second"):
        for file in (CONFIG, TENSORS):
            contents = {(tmp_path / folder / name / file).read_bytes() for folder in "abc"}
            assert len(contents) == 1
    assert read_config(tmp_path / "b")["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize("method", SHAPES)
def test_what_was_loaded_is_saved_as_the_same_bytes(method, model, tmp_path):
    config, _ = SHAPES[method]
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    for is_trainable in (False, True):
        loaded = PeftModel.from_pretrained(GPT(SMALL), tmp_path / "a", is_trainable=is_trainable)
        loaded.save_pretrained(tmp_path / "b")
        for file in (CONFIG, TENSORS):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_of_another_float_dtype_is_cast_to_the_adapters(dtype, model, tmp_path):
    get_peft_model(model, LoraConfig(r=4)).save_pretrained(tmp_path)
    tensors = {key: t.to(dtype) for key, t in load_file(tmp_path / TENSORS).items()}
    save_file(tensors, tmp_path / TENSORS)
    loaded = PeftModel.from_pretrained(GPT(SMALL), tmp_path)
    A = loaded.adapter_sets["default"]["model.layers.0.self_attn.q_proj"].lora_A.weight
    key = LAYER.format(0) + "self_attn.q_proj.lora_A.weight"
    assert A.dtype == torch.float32 and torch.equal(A, tensors[key].float())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("owner, name", [(files, "save_file"), (os, "replace"),
                                         (Path, "write_text")])
def test_a_failed_save_leaves_the_old_files(owner, name, model, tmp_path, monkeypatch):
    peft_model = get_peft_model(model, LoraConfig(r=4))
    peft_model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    with torch.no_grad():
        for p in peft_model.parameters():
            p.add_(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(OSError, match="No space left"):
            peft_model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before, "the old files, and no temporary ones beside them"
    peft_model.save_pretrained(tmp_path)
    assert contents(tmp_path)[TENSORS] != before[TENSORS]


def test_a_file_in_the_way_is_refused_and_kept(model, tmp_path):
    (tmp_path / "adapter").write_text("mine")
    with pytest.raises(NotADirectoryError, match="saved into a folder, but .*adapter is a file"):
        get_peft_model(model, LoraConfig()).save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter").read_text() == "mine"


def test_what_the_model_cannot_have_is_refused_by_the_files_name(model, tmp_path):
    get_peft_model(model, LoraConfig(r=4)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | {"target_modules": ["no_proj"]}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="adapter_config.json: .*no_proj"):
        PeftModel.from_pretrained(GPT(SMALL), tmp_path)
