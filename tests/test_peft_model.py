"""PeftModel: what HuggingFace PEFT's users expect of it, beyond the contract of test_methods."""
import pytest
import torch
from conftest import SMALL

from minipeft import (GPT, GPTConfig, HoulsbyConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                      TaskType, get_peft_model)
from minipeft.train import TrainConfig, train


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_readmes_snippet_prints_hf_pefts_line(capsys):
    with torch.device("meta"):
        model = GPT(GPTConfig.preset("llama-2-7b"))
    peft_config = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False, r=8,
                             lora_alpha=32, lora_dropout=0.1)
    model = get_peft_model(model, peft_config)
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622\n")


def test_inference_mode_adapts_and_trains_nothing(model, ids):
    peft_model = get_peft_model(model, LoraConfig(inference_mode=True))
    assert trainable(peft_model) == set()
    assert peft_model.get_nb_trainable_parameters()[0] == 0
    with pytest.raises(ValueError, match="trainable parameters, got none"):
        train(peft_model, iter(lambda: (ids, ids), None), TrainConfig(lr=1e-3), 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_adapted_model_is_in_the_mode_of_its_base(training, model):
    peft_model = get_peft_model(model.train(training), LoraConfig())
    assert {module.training for module in peft_model.modules()} == {training}


def test_a_loaded_adapter_is_ready_for_use_or_for_training(model, ids, tmp_path):
    get_peft_model(model, LoraConfig(lora_dropout=0.5)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(GPT(SMALL), tmp_path)
    assert {module.training for module in loaded.modules()} == {False}
    assert trainable(loaded) == set()
    loaded = PeftModel.from_pretrained(GPT(SMALL), tmp_path, is_trainable=True)
    assert {module.training for module in loaded.modules()} == {True}
    assert len(trainable(loaded)) == 2 * 2 * SMALL.num_hidden_layers


def test_a_folded_prefix_can_be_trained_on(model, ids, tmp_path):
    get_peft_model(model, PrefixTuningConfig(5, prefix_projection=True)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model := GPT(SMALL), tmp_path, is_trainable=True)
    # the file holds the prefix, not the MLP that made it: 2 L P d_kv numbers are left to train
    assert loaded.get_nb_trainable_parameters()[0] == 2 * SMALL.num_hidden_layers * 5 * 16
    losses = train(loaded, iter(lambda: (ids, ids), None), TrainConfig(lr=1e-1), 20).loss
    assert losses[-1] < losses[0]


def test_only_the_active_adapter_is_trainable(model):
    peft_model = get_peft_model(model, LoraConfig())
    peft_model.add_adapter("second", LoraConfig(target_modules=["k_proj"]))
    assert all("q_proj" in name or "v_proj" in name for name in trainable(peft_model))
    peft_model.set_adapter("second")
    assert trainable(peft_model) and all("k_proj" in name for name in trainable(peft_model))
    with peft_model.disable_adapter():
        assert trainable(peft_model) == set()
    peft_model.delete_adapter("second")
    assert peft_model.active_adapter == "default"
    assert all("q_proj" in name or "v_proj" in name for name in trainable(peft_model))


def test_any_module_with_linears_can_be_adapted_even_one_that_has_a_dequantize_method(ids):
    class Model(torch.nn.Module):       # as every model of transformers has
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4, bias=False)

        def dequantize(self):
            raise NotImplementedError

    peft_model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["layer"]))
    assert peft_model.get_nb_trainable_parameters() == (16, 32)


def test_adapting_leaves_the_modes_inside_the_base_as_they_were(model):
    model.train()
    attention = model.model.layers[0].self_attn
    attention.q_proj.eval()
    peft_model = get_peft_model(model, HoulsbyConfig(4))
    assert not attention.q_proj.training and attention.k_proj.training
    assert peft_model.training and model.model.layers[0].self_attn.training
