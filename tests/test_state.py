"""State stands in one place: names of tensors, tied weights, modules at two paths, wrappers."""
import copy
from dataclasses import replace

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from test_bad_input import refused
from torch import nn

from minipeft import (GPT, HoulsbyConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig,
                      get_peft_model, quantize_model)
from minipeft.llm.run_files import write_weights

TIED = replace(SMALL, tie_word_embeddings=True)
SETS = {"a": LoraConfig(r=2), "b": LoraConfig(r=3, target_modules=["q_proj", "lm_head"]),
        "c": PrefixTuningConfig(3, prefix_projection=True), "d": HoulsbyConfig(4),
        "e": PromptTuningConfig(4)}


def drawn(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter another number, adapters included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def several(active: str | None, seed: int, config=SMALL):
    model = get_peft_model(GPT(config), SETS["a"], "a")
    for name in "bcde":
        model.add_adapter(name, SETS[name])
    if active is not None:
        model.set_adapter(active)
    return drawn(model, seed).eval()


def outputs(model, ids) -> dict[str, torch.Tensor]:
    found, active = {}, model.active_adapter
    for name in SETS:
        model.set_adapter(name)
        found[name] = model(ids)
    model.set_adapter(active)
    with model.disable_adapter():
        return found | {"base": model(ids)}


# The state_dict of a PeftModel


@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("saved, loaded", [("a", "b"), ("b", "a"), ("c", "d"), ("d", "e"),
                                           ("e", "c")])
def test_a_state_loads_whichever_adapter_is_active(saved, loaded, config, ids):
    one, other = several(saved, 1, config), several(loaded, 2, config)
    expected = outputs(one, ids)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.active_adapter == loaded
    found = outputs(other, ids)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_keys_are_the_same_whoever_is_active_and_carry_the_adapters_name():
    model = several("a", 1)
    keys = {}
    for name in SETS:
        model.set_adapter(name)
        keys[name] = model.state_dict()
    with model.disable_adapter():
        keys["none"] = model.state_dict()
    first = {key: t.clone() for key, t in keys["a"].items()}
    for state in keys.values():
        assert state.keys() == first.keys()
        assert all(torch.equal(state[key], first[key]) for key in first)
    own = {key.split(".")[1] for key in first if key.startswith("adapters.")}
    assert own == set(SETS)
    base = {key.removeprefix("base_model.") for key in first if key.startswith("base_model.")}
    assert base == GPT(SMALL).state_dict().keys()
    assert first["adapters.b.lm_head.lora_A.weight"].shape == (3, SMALL.hidden_size)


def test_a_peft_model_inside_another_module_keeps_its_keys(ids):
    outer, again = (nn.ModuleDict(dict(head=nn.Linear(2, 2), net=several(name, seed)))
                    for name, seed in (("a", 1), ("d", 2)))
    expected, state = outputs(outer["net"], ids), outer.state_dict()
    assert "net.adapters.a.model.layers.0.self_attn.q_proj.lora_A.weight" in state
    again.load_state_dict(state)
    assert all(torch.equal(t, expected[name]) for name, t in outputs(again["net"], ids).items())
    assert torch.equal(again["head"].weight, outer["head"].weight)


def test_a_state_of_another_shape_is_refused_and_a_tensor_with_two_names_is_in_it_once():
    model = get_peft_model(GPT(TIED), PrefixTuningConfig(3, prefix_projection=True))
    state = model.state_dict()
    assert "base_model.lm_head.weight" not in state
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert len([key for key in state if "trunk.embedding" in key]) == 1
    model.load_state_dict(state)                        # strict, and complete
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(model.state_dict() | {"adapters.z.x": torch.ones(1)})


def test_a_copy_has_a_state_of_its_own(ids):
    model = several("a", 1)
    twin = copy.deepcopy(model)
    drawn(twin, 5)
    twin.set_adapter("b")
    model.load_state_dict(twin.state_dict())
    assert torch.equal(model(ids), outputs(twin, ids)["a"])


# Tied weights


def with_head(config=TIED, base=lambda gpt: gpt):
    torch.manual_seed(0)
    return drawn(get_peft_model(base(GPT(config)), LoraConfig(
        r=2, target_modules=["lm_head", "q_proj"])), 1).eval()


@pytest.mark.parametrize("base", [lambda gpt: gpt, lambda gpt: quantize_model(gpt, skip=())],
                         ids=["float", "4 bits"])
def test_a_tied_head_that_was_adapted_is_untied_by_merging_and_comes_back_from_its_file(
        base, ids, tmp_path):
    model = with_head(base=base)
    expected = model(ids)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids), expected, rtol=0, atol=1e-4)   # another order of sums
    assert not merged.tied and not merged.config.tie_word_embeddings
    merged.tie_weights()                                  # as after a load with assign=True
    write_weights(merged, tmp_path)
    fresh = GPT(merged.config)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))      # strict
    fresh.tie_weights()
    torch.testing.assert_close(fresh(ids), merged(ids), rtol=0, atol=1e-5)    # 4 bits: sums of gemv


def test_unloading_and_merging_other_layers_leave_a_tied_head_tied(ids, tmp_path):
    base = with_head().unload()
    assert base.tied and base.config == TIED
    merged = get_peft_model(base, LoraConfig(r=2)).merge_and_unload()
    assert merged.tied and merged.config == TIED
    write_weights(merged, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_merged_head_of_transformers_survives_its_own_files(kind, ids, tmp_path):
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = {"Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
                 vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                 num_attention_heads=4, tie_word_embeddings=True)),
             "GPT2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
                 vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=64))}[kind]().eval()
    adapted = drawn(get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])), 1).eval()
    expected = adapted(ids).logits
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=1e-4)
    assert again.config.tie_word_embeddings is False


# Wrappers, and modules at two paths


@pytest.mark.parametrize("wrap", [
    torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel,
    lambda gpt: nn.Sequential(nn.DataParallel(gpt))],
    ids=["compile", "DataParallel", "AveragedModel", "inside"])
@pytest.mark.parametrize("config", [LoraConfig(target_modules="all-linear")], ids=["lora"])
def test_a_wrapped_model_is_refused(wrap, config, model):
    wrapped = wrap(model)
    with refused(wrapped, ValueError, "is wrapped in .*every saved key; pass the module inside"):
        get_peft_model(wrapped, config)


def test_a_model_wrapped_in_part_is_refused_by_its_path(model, tmp_path):
    model.model.layers[1] = torch.compile(model.model.layers[1])
    with refused(model, ValueError, "^model.layers.1 is wrapped in OptimizedModule"):
        get_peft_model(model, LoraConfig())
    with refused(model, ValueError, "^model.layers.1 is wrapped in OptimizedModule"):
        write_weights(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_the_name_module_is_no_wrapper():
    model = nn.ModuleDict(dict(module=nn.Linear(4, 4)))
    assert get_peft_model(model, LoraConfig(r=1, target_modules=["module"])).adapter_sets


def test_a_compiled_peft_model_saves_plain_keys(model, tmp_path):
    peft_model = get_peft_model(model, LoraConfig(r=2))
    torch.compile(peft_model, backend="eager").save_pretrained(tmp_path)
    assert all(key.startswith("base_model.model.model.layers.")
               for key in load_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize("config", [LoraConfig(r=2), LoraConfig(r=2, target_modules="all-linear"),
                                    PrefixTuningConfig(2), HoulsbyConfig(4)],
                         ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("share", ["a linear", "a layer"])
def test_a_module_at_two_paths_is_refused(config, share, model):
    layers = model.model.layers
    if share == "a layer":
        layers[1] = layers[0]
    elif isinstance(config, LoraConfig):
        layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
    else:
        layers[1].self_attn = layers[0].self_attn
    with refused(model, ValueError, "the module at 'model.layers.0.self_attn.* stands at "
                                    "'model.layers.1.self_attn"):
        get_peft_model(model, config)


def test_a_shared_module_that_is_not_adapted_is_nobodys_business(model):
    layers = model.model.layers
    layers[1].mlp = layers[0].mlp
    assert get_peft_model(model, LoraConfig(r=2)).adapter_sets


# Merging what is not finite


@pytest.mark.parametrize("value, dtype", [(float("nan"), torch.float32),
                                          (float("inf"), torch.float32), (1e30, torch.float32),
                                          (1e3, torch.float16)])
def test_merging_into_what_is_not_finite_is_refused(value, dtype, model):
    peft_model = get_peft_model(model.to(dtype), LoraConfig(r=2))
    with torch.no_grad():
        for adapter in peft_model.adapter_sets["default"].values():
            for tensor in adapter.own_state().values():
                tensor.fill_(value)
    with refused_nan(peft_model):
        peft_model.merge_and_unload()
    assert peft_model.active_adapter == "default"


def refused_nan(model):
    return pytest.raises(ValueError, match="merging the adapter at model.layers.0.self_attn.q_proj "
                                           "gives NaN or infinity.*unload")


def test_an_adapter_that_is_not_finite_is_not_written_over_a_good_one(model, tmp_path):
    peft_model = get_peft_model(model, LoraConfig(r=2))
    peft_model.save_pretrained(tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        next(iter(peft_model.adapter_sets["default"].values())).lora_A.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="must hold finite numbers, got NaN"):
        peft_model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


# A layer's weight, for those who read it and never call the layer


@pytest.mark.parametrize("four_bit", [False, True])
def test_what_reads_an_adapted_layers_weight_computes_with_the_adapter(four_bit):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(
        16, 4, 32, batch_first=True), 2).eval()
    if four_bit:
        quantize_model(encoder, skip=())
    x = torch.randn(2, 5, 16)
    plain = encoder(x)
    adapted = drawn_adapters(get_peft_model(encoder, LoraConfig(
        r=2, target_modules=["linear1", "linear2", "out_proj"])))
    with torch.no_grad():
        fast = adapted(x)                         # torch's fast path takes the weights alone
    slow = adapted(x)
    merged = adapted.merge_and_unload()(x)
    assert (plain - merged).abs().max() > 0.1
    torch.testing.assert_close(fast, merged, rtol=0, atol=1e-5)       # other orders of sums
    torch.testing.assert_close(slow, merged, rtol=0, atol=1e-5)


def drawn_adapters(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_()
    return model.eval()


def test_attention_that_reads_the_weight_trains_the_adapter():
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    model = drawn_adapters(get_peft_model(attention, LoraConfig(r=2, target_modules=["out_proj"])))
    x = torch.randn(2, 5, 16)
    model(x, x, x)[0].square().sum().backward()
    layer = model.base_model.out_proj
    assert layer.lora_A.weight.grad.abs().max() > 0 and layer.lora_B.weight.grad.abs().max() > 0
    W = layer.base_layer.weight + 4 * layer.lora_B.weight @ layer.lora_A.weight     # 8 / 2
    torch.testing.assert_close(layer.weight, W)
    assert layer.bias is layer.base_layer.bias
