"""What users of HF PEFT type works, or is refused by a sentence that says what to write."""
import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from test_bad_input import refused
from torch import nn

import minipeft
from minipeft import (HoulsbyConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                      PromptTuningConfig, TaskType, get_peft_model, quantize_model)
from minipeft.hf_names import HARMLESS, INSTEAD, NOT_IMPLEMENTED
from minipeft.train import TrainConfig, train

TESTS = Path(__file__).parent


# Keywords of configs


@pytest.mark.parametrize("make", [LoraConfig, lambda **more: PromptTuningConfig(5, **more),
                                  lambda **more: PrefixTuningConfig(5, **more),
                                  lambda **more: HoulsbyConfig(4, **more)])
def test_neutral_keywords_of_hf_peft_change_nothing(make):
    neutral = {**NOT_IMPLEMENTED, **dict.fromkeys(HARMLESS)}
    assert make(**neutral) == make()
    for key in NOT_IMPLEMENTED:
        for value in (None, {}, []):
            assert make(**{key: value}) == make()


def test_every_keyword_that_peft_has_is_taken_at_pefts_own_default():
    peft = pytest.importorskip("peft")
    for theirs, ours, given in ((peft.LoraConfig, LoraConfig, {}),
                                (peft.PromptTuningConfig, PromptTuningConfig,
                                 dict(num_virtual_tokens=5)),
                                (peft.PrefixTuningConfig, PrefixTuningConfig,
                                 dict(num_virtual_tokens=5))):
        config = theirs(**given)
        for field in dataclasses.fields(theirs):
            value = getattr(config, field.name)
            if field.name in ("peft_type", "runtime_config", "loftq_config"):
                continue
            ours(**given | {field.name: value})


@pytest.mark.parametrize("key, value", [
    ("bias", "all"), ("bias", "lora_only"), ("use_dora", True), ("lora_bias", True),
    ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 2}),
    ("alpha_pattern", {"q_proj": 2}), ("layers_to_transform", 0), ("exclude_modules", ["q_proj"]),
    ("target_parameters", ["w"]), ("use_qalora", True), ("layer_replication", [[0, 1]]),
    ("trainable_token_indices", [1]), ("num_transformer_submodules", 2)])
def test_another_value_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"LoraConfig: {key}=.* is not implemented here"):
        LoraConfig(**{key: value})


@pytest.mark.parametrize("key, message", [("rank", "LoraConfig has no 'rank'; it takes r, "),
                                          ("lora_alfa", "no 'lora_alfa', did you mean lora_alpha"),
                                          ("num_virtual_tokens", "no 'num_virtual_tokens'"),
                                          ("peft_type", "no 'peft_type'")])
def test_a_keyword_that_nobody_has_is_refused_with_the_nearest(key, message):
    with pytest.raises(TypeError, match=message):
        LoraConfig(**{key: 8})


def test_a_config_comes_back_from_its_dictionary():
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], bias="none")
    assert config.to_dict()["peft_type"] == "LORA" and config.to_dict()["r"] == 3
    assert LoraConfig(**config.to_dict()) == config


def test_a_config_is_frozen():
    config = LoraConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 4
    assert dataclasses.replace(config, r=4).r == 4


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
@pytest.mark.parametrize("make", [LoraConfig, lambda **more: PromptTuningConfig(5, **more),
                                  lambda **more: PrefixTuningConfig(5, **more),
                                  lambda **more: HoulsbyConfig(4, **more)])
def test_a_task_type_with_a_fresh_head_is_refused(task, make):
    for value in (task, TaskType[task]):
        with pytest.raises(ValueError, match="fresh head .* leave task_type out, then train and"):
            make(task_type=value)
    assert make(task_type="CAUSAL_LM").task_type == TaskType.CAUSAL_LM


def test_the_two_ways_to_draw_A():
    n = 256
    for init, expected in (("gaussian", 1 / math.sqrt(n)), (True, 1 / math.sqrt(3 * n))):
        torch.manual_seed(0)
        model = get_peft_model(nn.Sequential(nn.Linear(n, n)), LoraConfig(
            r=64, target_modules=["0"], init_lora_weights=init))
        std = model.base_model[0].lora_A.weight.std().item()
        assert std == pytest.approx(expected, rel=0.03)        # 16384 draws: 0.6 % a standard error


# Keywords and names of functions


def test_the_names_of_arguments_are_pefts(model, tmp_path):
    peft_model = get_peft_model(model=model, peft_config=LoraConfig(), adapter_name="a",
                                autocast_adapter_dtype=True, low_cpu_mem_usage=True, mixed=False)
    peft_model.add_adapter(adapter_name="b", peft_config=LoraConfig(r=2))
    peft_model.set_adapter(adapter_name="b")
    assert peft_model.active_adapters == ["b"] == [peft_model.active_adapter]
    with peft_model.disable_adapter():
        assert peft_model.active_adapters == []
    peft_model.save_pretrained(save_directory=tmp_path, selected_adapters=["b"],
                               safe_serialization=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    peft_model.load_adapter(model_id=tmp_path / "b", adapter_name="c", is_trainable=True)
    peft_model.delete_adapter(adapter_name="a")
    assert list(peft_model.peft_config) == ["b", "c"]
    base = peft_model.merge_and_unload(safe_merge=True)
    again = PeftModel.from_pretrained(model=base, model_id=tmp_path / "b", config=None)
    assert list(again.peft_config) == ["default"]


@pytest.mark.parametrize("arguments, message", [
    (dict(mixed=True), "get_peft_model: mixed=True is not implemented here; leave it out"),
    (dict(autocast_adapter_dtype=False), "autocast_adapter_dtype=False is not implemented"),
    (dict(autocast=1), "has no argument 'autocast'"), (dict(rank=8), "has no argument 'rank'")])
def test_an_argument_that_asks_for_something_else_is_refused(arguments, message, model):
    with refused(model, TypeError, message):
        get_peft_model(model, LoraConfig(), **arguments)


def test_an_adapter_that_is_not_there_is_not_saved(model, tmp_path):
    peft_model = get_peft_model(model, LoraConfig())
    with pytest.raises(ValueError, match="no adapter 'other'; there are: default"):
        peft_model.save_pretrained(tmp_path, selected_adapters=["default", "other"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", INSTEAD)
def test_names_that_have_another_way_here_say_which(name):
    with pytest.raises(ImportError, match=f"minipeft has no {name}; write instead: "):
        exec(f"from minipeft import {name}")


def test_a_name_that_nobody_has_is_an_attribute_error():
    assert not hasattr(minipeft, "no_such_name")
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec("from minipeft import no_such_name")


def test_the_bases_attributes_are_there(model, ids):
    peft_model = get_peft_model(model, LoraConfig())
    assert peft_model.config is model.config and peft_model.tied is False
    assert peft_model.get_input_embeddings() is model.model.embed_tokens
    assert peft_model.get_output_embeddings() is model.lm_head
    assert [t.shape for t in peft_model.stream(ids, 2)] == [(3, 1)] * 2
    with pytest.raises(AttributeError, match="neither PeftModel nor its base model, a GPT, has "
                                             "'merge_adapter'"):
        peft_model.merge_adapter()
    assert not hasattr(peft_model, "_no_such") and not hasattr(peft_model, "__len__")


def test_transformers_attributes_are_there():
    hf = pytest.importorskip("transformers")
    model = hf.LlamaForCausalLM(hf.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4)).bfloat16()
    peft_model = get_peft_model(model, LoraConfig(r=2))
    assert peft_model.device.type == "cpu" and peft_model.dtype == torch.bfloat16
    assert peft_model.config.hidden_size == 32
    peft_model.config.use_cache = False
    assert model.config.use_cache is False


def test_a_model_without_the_default_targets_is_told_its_linears():
    model = nn.ModuleDict(dict(c_attn=nn.Linear(4, 4), ln=nn.LayerNorm(4), c_fc=nn.Linear(4, 4)))
    with refused(model, ValueError, "None means q_proj and v_proj, .* its linears, c_attn, c_fc, "
                                    "or write target_modules='all-linear'"):
        get_peft_model(model, LoraConfig(r=2))


# Better than PEFT


def test_each_adapter_keeps_whether_it_is_trained(model, tmp_path):
    peft_model = get_peft_model(model, LoraConfig(), "a")
    peft_model.save_pretrained(tmp_path)
    peft_model.load_adapter(tmp_path / "a", "frozen")
    peft_model.load_adapter(tmp_path / "a", "trained", is_trainable=True)
    counts = {}
    for name in ("a", "frozen", "trained", "a"):
        peft_model.set_adapter(name)
        counts.setdefault(name, []).append(peft_model.get_nb_trainable_parameters()[0] > 0)
    assert counts == {"a": [True, True], "frozen": [False], "trained": [True]}


def test_an_adapter_added_in_evaluation_does_not_drop_out(model, ids):
    peft_model = get_peft_model(model, LoraConfig()).eval()
    peft_model.add_adapter("second", LoraConfig(r=4, lora_dropout=0.9))
    peft_model.set_adapter("second")
    with torch.no_grad():
        for adapter in peft_model.adapter_sets["second"].values():
            adapter.lora_B.weight.normal_()
    assert torch.equal(peft_model(ids), peft_model(ids))
    peft_model.train()
    assert not torch.equal(peft_model(ids), peft_model(ids))


def test_modules_named_like_loras_own_are_adapted(tmp_path):
    names = ["lora_A", "lora_B", "base_layer", "default", "lora_dropout"]
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=names))
    with torch.no_grad():
        for p in peft_model.parameters():
            p.normal_()
    peft_model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(nn.ModuleDict({n: nn.Linear(4, 4) for n in names}), tmp_path)
    state = peft_model.state_dict()
    assert len(state) == 4 * len(names)                  # weight, bias, A and B each
    again.load_state_dict(state)
    x = torch.randn(3, 4)
    for name in names:
        assert torch.equal(again.base_model[name](x), peft_model.base_model[name](x))


def test_qlora_trains_on_after_an_evaluation(model, ids):
    peft_model = get_peft_model(quantize_model(model), LoraConfig(r=2))
    peft_model.eval()(ids[:, :1])
    losses = train(peft_model, iter(lambda: (ids, ids), None), TrainConfig(lr=1e-2), 10).loss
    assert losses[-1] < losses[0]


# The page


def test_every_line_of_the_page_names_a_test_that_is_there():
    page = (TESTS.parent / "docs" / "differences.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| ") and "| test |" not in row]
    for row in rows:
        file, name = re.fullmatch(r"\|.*\| `([\w/]+\.py)::(\w+)` \|", row).groups()
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), row
    assert len(rows) > 20


def test_the_page_is_reached_from_the_readme():
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    assert "](docs/differences.md)" in readme
