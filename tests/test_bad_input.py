"""Bad input to adapters: an error that says what was wanted, and everything is as it was before."""
import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file
from torch import nn

from minipeft import (GPT, GPTConfig, HoulsbyConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                      PromptTuningConfig, get_peft_model, quantize_model)
from minipeft.recipes import adapt

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CONFIGS = {"lora": LoraConfig(r=4), "prompt": PromptTuningConfig(5),
           "prefix": PrefixTuningConfig(5), "houlsby": HoulsbyConfig(6)}


def state(model):
    """Everything that a failed call must leave: modules, their mode, tensors, what is trainable."""
    modules = {path: (module.training, isinstance(module, nn.ModuleList) or id(module))
               for path, module in model.named_modules()}        # a list is what stands in it
    tensors = {name: (id(t), t.requires_grad) for name, t in
               [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    values = {name: t.clone() for name, t in model.state_dict().items()}
    return modules, tensors, values


@contextmanager
def refused(model, error, message):
    """The block raises `error`; `model` is bitwise and structurally as before."""
    modules, tensors, values = state(model)
    with pytest.raises(error, match=message):
        yield
    modules_after, tensors_after, values_after = state(model)
    assert modules_after == modules and tensors_after == tensors
    assert values_after.keys() == values.keys()
    assert all(torch.equal(values_after[name], values[name]) for name in values)


# Configs that are wrong in themselves

@pytest.mark.parametrize("fields, message", [
    (dict(r=0), "r must be a whole number of at least 1, got 0"),
    (dict(r=-4), "r must be .* got -4"),
    (dict(r=2.5), "r must be a whole number .* got 2.5"),
    (dict(r=8.0), "r must be a whole number .* got 8.0"),
    (dict(r="8"), "r must be .* got '8'"),
    (dict(r=np.int64(8)), r"r must be a whole number .* got np.int64\(8\)"),
    (dict(r=True), "r must be .* got True"),
    (dict(lora_alpha=0), "lora_alpha must be a positive number, got 0"),
    (dict(lora_alpha=float("nan")), "lora_alpha must be .* got nan"),
    (dict(lora_alpha=float("inf")), "lora_alpha must be .* got inf"),
    (dict(lora_alpha="16"), "lora_alpha must be .* got '16'"),
    (dict(lora_alpha=np.float32(16)), r"lora_alpha must be .* got np.float32\(16.0\)"),
    (dict(lora_alpha=None), "lora_alpha must be .* got None"),
    (dict(lora_dropout=1.0), r"lora_dropout must lie in \[0, 1\), got 1.0"),
    (dict(lora_dropout=-0.1), "lora_dropout must lie in .* got -0.1"),
    (dict(lora_dropout=float("nan")), "lora_dropout must lie in .* got nan"),
    (dict(lora_dropout="0.1"), "lora_dropout must lie in .* got '0.1'"),
    (dict(init_lora_weights="pissa"), "init_lora_weights must be one of 'gaussian', True, got 'pi"),
    (dict(init_lora_weights=1), "init_lora_weights must be .* got 1"),
    (dict(use_rslora="no"), "use_rslora must be one of True, False, got 'no'"),
    (dict(inference_mode=None), "inference_mode must be one of True, False, got None"),
    (dict(task_type="CAUSAL"), "task_type must be None or one of CAUSAL_LM, .* got 'CAUSAL'"),
    (dict(target_modules="q_proj"), r"got the string 'q_proj'; write \['q_proj'\]"),
    (dict(target_modules=r".*\.q_proj"), "a name, not a pattern"),
    (dict(target_modules=[]), r"list of at least one name, got \[\]"),
    (dict(target_modules=[1]), r"list of at least one name, got \[1\]"),
    (dict(target_modules=7), "list of at least one name, got 7"),
], ids=str)
def test_a_wrong_lora_config(fields, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


@pytest.mark.parametrize("kind, fields, message", [
    (PromptTuningConfig, dict(num_virtual_tokens=0), "num_virtual_tokens must be .* got 0"),
    (PromptTuningConfig, dict(num_virtual_tokens=2.0), "num_virtual_tokens must be .* got 2.0"),
    (PromptTuningConfig, dict(num_virtual_tokens=2, prompt_tuning_init="random"),
     "prompt_tuning_init must be one of 'RANDOM', 'SAMPLE_VOCAB', 'TEXT', got 'random'"),
    (PromptTuningConfig, dict(num_virtual_tokens=2, prompt_tuning_init="TEXT"),
     "wants prompt_tuning_init_text and a tokenizer"),
    (PrefixTuningConfig, dict(num_virtual_tokens=0), "num_virtual_tokens must be .* got 0"),
    (PrefixTuningConfig, dict(num_virtual_tokens=2, encoder_hidden_size=0),
     "encoder_hidden_size must be .* got 0"),
    (PrefixTuningConfig, dict(num_virtual_tokens=2, prefix_init="zero"), "prefix_init must be"),
    (PrefixTuningConfig, dict(num_virtual_tokens=2, prefix_projection=512),
     "prefix_projection must be one of True, False, got 512"),
    (PrefixTuningConfig, dict(num_virtual_tokens=2, prefix_projection=True,
                              prefix_init="SAMPLE_VOCAB"), "choose one of them"),
    (HoulsbyConfig, dict(bottleneck_size=0), "bottleneck_size must be .* got 0"),
    (HoulsbyConfig, dict(bottleneck_size=4, non_linearity="tanh"),
     "non_linearity must be one of 'gelu', 'relu', 'swish', got 'tanh'"),
    (HoulsbyConfig, dict(bottleneck_size=4, init_std=0), "init_std must be positive"),
    (HoulsbyConfig, dict(bottleneck_size=4, init_std="0.01"), "init_std must be positive"),
], ids=str)
def test_a_wrong_config_of_another_method(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


# Configs that do not fit the model

MISFITS = {
    "no target matches": (LoraConfig(target_modules=["c_attn"]), ValueError,
                          "target 'c_attn' matches no module"),
    "one of several": (LoraConfig(target_modules=["q_proj", "v_porj"]), ValueError,
                       "^target 'v_porj' matches no module, did you mean v_proj"),
    "half a name": (LoraConfig(target_modules=["proj"]), ValueError, "target 'proj' matches no"),
    "two of several": (LoraConfig(target_modules=["q_poj", "q_proj", "v_poj"]), ValueError,
                       "target 'q_poj' .*; target 'v_poj' .*"),
    "not a Linear": (LoraConfig(target_modules=["q_proj", "input_layernorm"]), TypeError,
                     "'model.layers.0.input_layernorm' is a RMSNorm; name the linears inside"),
    "a block": (LoraConfig(target_modules=["mlp"]), TypeError, "'model.layers.0.mlp' is a MLP"),
    "an Embedding": (LoraConfig(target_modules=["embed_tokens"]), TypeError, "is a Embedding"),
    "rank beyond the width": (LoraConfig(r=17), ValueError,
                              "r must be at most 16, .*v_proj.* got 17"),
    "bottleneck beyond the width": (HoulsbyConfig(33), ValueError,
                                    "bottleneck_size must be at most the model's width 32, got 33"),
    "text outside the vocabulary": (PromptTuningConfig(3, "TEXT", "a", lambda text: [61]),
                                    ValueError, "token ids must lie in 0 ... 60, got 61"),
    "text without tokens": (PromptTuningConfig(3, "TEXT", "a", lambda text: []), ValueError,
                            "token ids must be a non-empty"),
    "a prompt beyond the model": (PromptTuningConfig(10**12, "SAMPLE_VOCAB"), ValueError,
                                  "at most 64 positions .* got 1000000000000"),
    "prefix tokens beyond the model": (PrefixTuningConfig(65, prefix_init="SAMPLE_VOCAB"),
                                       ValueError, "at most 64 positions .* got 65"),
    "no config": (None, TypeError, "a config must be one of LoraConfig, .* got <class 'NoneType'>"),
    "a dictionary": (dict(r=4), TypeError, "got <class 'dict'>"),
    "the class": (LoraConfig, TypeError, "got <class 'type'>"),
    "somebody else's": (SimpleNamespace(peft_type="LORA", r=4), TypeError, "got <class 'types.S"),
}


@pytest.fixture(params=[None, *CONFIGS])
def adapted(request, model):
    """(what must stay as it was, get(config)): a bare model, or one adapted by each method."""
    model.model.norm.weight.requires_grad_(False)       # some of each, to see them kept
    model.model.layers[0].eval()
    if request.param is None:
        return model, lambda config: get_peft_model(model, config)
    peft_model = get_peft_model(model, CONFIGS[request.param])
    return peft_model, lambda config: peft_model.add_adapter("second", config)


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_config_that_does_not_fit_changes_nothing(misfit, adapted):
    model, get = adapted
    config, error, message = MISFITS[misfit]
    with refused(model, error, message):
        get(config)


def test_all_linear_on_a_model_without_one():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with refused(model, ValueError, "'all-linear' found no linear layer"):
        get_peft_model(model, LoraConfig(target_modules="all-linear"))


@pytest.mark.parametrize("method", ["prompt", "prefix", "houlsby"])
def test_a_method_that_needs_a_gpt_refuses_another_model(method):
    model = nn.ModuleDict(dict(self_attn=nn.Linear(4, 4), mlp=nn.Linear(4, 4)))
    with refused(model, TypeError, "adapts a minipeft.GPT, got ModuleDict"):
        get_peft_model(model, CONFIGS[method])


@pytest.mark.parametrize("arguments, message", [
    ((LoraConfig(), None), "a model must be an nn.Module, got <class 'minipeft.lora.LoraConfig'>"),
    (("gpt2", LoraConfig()), "a model must be an nn.Module, got <class 'str'>"),
])
def test_what_is_not_a_model(arguments, message):
    with pytest.raises(TypeError, match=message):
        get_peft_model(*arguments)


@pytest.mark.parametrize("dtype", [torch.int8, "float32", None])
def test_an_adapter_dtype_that_cannot_be_trained(dtype, model):
    with refused(model, TypeError, "adapter_dtype must be a floating-point dtype such as"):
        get_peft_model(model, LoraConfig(), adapter_dtype=dtype)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", 3])
def test_a_name_that_is_no_folder(name, model):
    with refused(model, ValueError, "an adapter's name must be letters"):
        get_peft_model(model, LoraConfig(), name)


# Full fine-tuning of a part

@pytest.mark.parametrize("spoil, message", [
    (lambda m: get_peft_model(m, LoraConfig()), "q_proj is adapted; take the base model"),
    (lambda m: get_peft_model(m, HoulsbyConfig(4)).base_model, "self_attn is adapted"),
    (quantize_model, "model.layers.0.self_attn.q_proj is in 4 bits; take the base model"),
    (lambda m: m.requires_grad_(False), "model.embed_tokens.weight is frozen; call"),
    (lambda m: m.model.norm.requires_grad_(False) and m, "model.norm.weight is frozen"),
], ids=["adapted", "its base", "4 bits", "frozen", "frozen in part"])
def test_full_fine_tuning_of_what_is_not_whole_is_refused(spoil, message, model):
    model = spoil(model)
    with refused(model, ValueError, message):
        adapt(model, "full")


def test_full_fine_tuning_of_a_model_that_was_unloaded_is_not(model):
    base = get_peft_model(model, LoraConfig()).unload()
    assert adapt(base, "full") is model


# Using an adapted model wrongly

@pytest.fixture(params=CONFIGS)
def peft_model(request, model):
    return get_peft_model(model, CONFIGS[request.param])


@pytest.mark.parametrize("call, message", [
    (lambda m: m.set_adapter("defualt"), "no adapter 'defualt', did you mean default.*: default"),
    (lambda m: m.set_adapter(None), "no adapter None; there are: default"),
    (lambda m: m.delete_adapter("second"), "no adapter 'second'; there are: default"),
    (lambda m: m.delete_adapter("default"), "'default' is the only adapter; unload"),
    (lambda m: m.add_adapter("default", LoraConfig()), "an adapter 'default' exists already"),
    (lambda m: m.add_adapter("a.b", LoraConfig()), "an adapter's name must be letters"),
    (lambda m: get_peft_model(m, LoraConfig()), "carries adapters already; use add_adapter"),
    (lambda m: get_peft_model(m.base_model, LoraConfig()), "carries adapters already"),
    (lambda m: m.generate(torch.tensor([[61]]), 2), "token ids must lie in 0 ... 60, got 61"),
    (lambda m: m.generate(torch.tensor([[-1]]), 2), "token ids must lie in 0 ... 60, got -1"),
    (lambda m: m(torch.zeros(1, 65, dtype=torch.long)), "at most 64 positions"),
])
def test_a_wrong_call_changes_nothing(call, message, peft_model):
    with refused(peft_model, ValueError, message):
        call(peft_model)
    assert peft_model.active_adapter == "default" and list(peft_model.peft_config) == ["default"]


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_count_towards_the_longest_sequence(method, model):
    peft_model = get_peft_model(model, CONFIGS[method])
    assert peft_model(torch.zeros(1, 59, dtype=torch.long)).shape == (1, 59, 61)
    with refused(peft_model, ValueError, "virtual tokens included, must have at most 64 .* got 65"):
        peft_model(torch.zeros(1, 60, dtype=torch.long))


def test_merging_without_an_active_adapter(model):
    peft_model = get_peft_model(model, LoraConfig())
    with peft_model.disable_adapter():
        with refused(peft_model, ValueError, "no active adapter to merge"):
            peft_model.merge_and_unload()
    merged = peft_model.merge_and_unload()
    with refused(merged, ValueError, "no active adapter to merge"):
        peft_model.merge_and_unload()


def test_merging_into_a_weight_that_somebody_else_packed():
    class Packed(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)

    peft_model = get_peft_model(nn.ModuleDict(dict(q_proj=Packed())),
                                LoraConfig(r=2, target_modules=["q_proj"]))
    with refused(peft_model, TypeError, "cannot merge into a Packed, whose weight is packed"):
        peft_model.merge_and_unload()


# Files

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder for each method with an adapter of it; "deeper" and "wider": of other models."""
    root = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        get_peft_model(GPT(SMALL), config).save_pretrained(root / name)
    for name, sizes in (("deeper", dict(num_hidden_layers=3)), ("wider", dict(hidden_size=64))):
        other = GPT(GPTConfig(**{**vars(SMALL), **sizes}))
        get_peft_model(other, CONFIGS["lora"]).save_pretrained(root / name)
    return root


def edit_config(folder, **entries):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | entries))


def edit_tensors(folder, edit):
    tensors = load_file(folder / TENSORS)
    save_file(edit(tensors), folder / TENSORS)


def renamed(rename):
    return lambda folder: edit_tensors(folder, lambda tensors: {rename(key): t for key, t in
                                                                tensors.items()})


def first_tensor(change):
    return lambda folder: edit_tensors(folder, lambda tensors: tensors | {
        min(tensors): change(tensors[min(tensors)])})


def overwrite(t, value):
    t = t.clone()
    t.view(-1)[-1] = value
    return t


def truncate(folder):
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:-20])


def without(*keys):
    def edit(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if k not in keys}))
    return edit


def become_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


NO_LORA = "is not implemented here, and without it the adapter would compute something else"
# damage: (method, what is done to its folder, error, message)
DAMAGE = {
    "no folder": ("lora", shutil.rmtree, FileNotFoundError, "no adapter folder .*lora"),
    "a file": ("lora", become_a_file, NotADirectoryError, "lora is a file"),
    "no config": ("lora", lambda f: (f / CONFIG).unlink(), FileNotFoundError,
                  f"holds no {CONFIG}; it holds {TENSORS}"),
    "no tensors": ("prefix", lambda f: (f / TENSORS).unlink(), FileNotFoundError,
                   f"holds no {TENSORS}; it holds {CONFIG}"),
    "not JSON": ("lora", lambda f: (f / CONFIG).write_text("{r: 4"), ValueError, "not valid JSON"),
    "not text": ("lora", lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"), ValueError, "not valid"),
    "a list": ("lora", lambda f: (f / CONFIG).write_text("[]"), ValueError, "an object, got list"),
    "no peft_type": ("lora", without("peft_type"), ValueError, "peft_type must be .* got None"),
    "unknown peft_type": ("lora", lambda f: edit_config(f, peft_type="IA3"), ValueError,
                          "peft_type must be one of LORA, .* got 'IA3'"),
    "odd peft_type": ("lora", lambda f: edit_config(f, peft_type=["LORA"]), ValueError,
                      "peft_type must be"),
    "another peft_type": ("prompt", lambda f: edit_config(f, peft_type="PREFIX_TUNING"), ValueError,
                          r"must have shape \(5, 64\), got \(5, 32\)"),
    "lora as prompt": ("lora", lambda f: edit_config(f, peft_type="PROMPT_TUNING",
                                                     num_virtual_tokens=5), ValueError,
                       "1 keys missing, such as 'prompt_embeddings'"),
    "no size": ("prompt", without("num_virtual_tokens"), ValueError, "num_virtual_tokens"),
    "a fractional rank": ("lora", lambda f: edit_config(f, r=4.5), ValueError,
                          "adapter_config.json: r must be a whole number"),
    "rank as text": ("lora", lambda f: edit_config(f, r="4"), ValueError, "r must be .* got '4'"),
    "a pattern": ("lora", lambda f: edit_config(f, target_modules=".*proj"), ValueError,
                  "adapter_config.json: target_modules must be"),
    "another rank": ("lora", lambda f: edit_config(f, r=3), ValueError,
                     r"lora_A.weight must have shape \(3, 32\), got \(4, 32\); is r"),
    "other targets": ("lora", lambda f: edit_config(f, target_modules=["q_proj", "k_proj"]),
                      ValueError, "4 keys missing, such as '.*k_proj.*did you mean .*v_proj.*; "
                                  "4 keys unexpected, such as '.*v_proj"),
    "another architecture": ("lora", lambda f: edit_config(f, target_modules=["c_attn"]),
                             ValueError, "target 'c_attn' matches no module"),
    "a deeper model": ("deeper", lambda f: None, ValueError,
                       "4 keys unexpected, such as '.*layers.2.self_attn.q_proj.lora_A.weight'"),
    "a wider model": ("wider", lambda f: None, ValueError, r"shape \(4, 32\), got \(4, 64\); is r, "
                                                           "or the model, another one"),
    "the name in the keys": ("lora", renamed(lambda key: key.replace(".weight", ".default.weight")),
                             ValueError, "8 keys missing, such as '.*lora_A.weight', did you mean "
                                         ".*lora_A.default.weight.*; 8 keys unexpected"),
    "no prefix": ("lora", renamed(lambda key: key.removeprefix("base_model.model.")), ValueError,
                  "missing, such as 'base_model.model.model.*, did you mean model.layers.*unexpec"),
    "half a prefix": ("houlsby", renamed(lambda key: key.removeprefix("base_model.")), ValueError,
                      "16 keys missing.*16 keys unexpected"),
    "a key missing": ("lora", lambda f: edit_tensors(f, lambda t: dict(list(t.items())[1:])),
                      ValueError, "1 keys missing"),
    "a key too many": ("prefix", lambda f: edit_tensors(f, lambda t: t | {"x": torch.ones(1)}),
                       ValueError, "1 keys unexpected, such as 'x'"),
    "no keys": ("lora", lambda f: save_file({}, f / TENSORS), ValueError, "8 keys missing"),
    "misshapen": ("prompt", first_tensor(lambda t: t[:4].clone()), ValueError,
                  r"prompt_embeddings must have shape \(5, 32\), got \(4, 32\)"),
    "transposed": ("lora", first_tensor(lambda t: t.T.contiguous()), ValueError,
                   r"must have shape \(4, 32\), got \(32, 4\)"),
    "NaN": ("lora", first_tensor(lambda t: overwrite(t, float("nan"))), ValueError,
            "must hold finite numbers"),
    "infinity": ("prefix", first_tensor(lambda t: overwrite(t, float("-inf"))), ValueError,
                 "must hold finite numbers"),
    "integers": ("lora", first_tensor(lambda t: t.to(torch.int32)), ValueError,
                 "must hold floating-point numbers, got torch.int32"),
    "truncated": ("lora", truncate, ValueError, "truncated or no safetensors file"),
    "empty": ("lora", lambda f: (f / TENSORS).write_bytes(b""), ValueError, "truncated or no safe"),
    "garbage": ("lora", lambda f: (f / TENSORS).write_bytes(bytes(range(200))), ValueError,
                "truncated or no safetensors file"),
    **{f"HF's {key}={value}": (
        method, lambda f, key=key, value=value: edit_config(f, **{key: value}), ValueError,
        f"{key}=.*{NO_LORA}") for method, key, value in [
        ("lora", "alpha_pattern", {"q_proj": 16}), ("lora", "rank_pattern", {"q_proj": 2}),
        ("lora", "use_dora", True), ("lora", "bias", "all"), ("lora", "lora_bias", True),
        ("lora", "modules_to_save", ["lm_head"]), ("lora", "layers_to_transform", 0),
        ("lora", "layers_to_transform", [0]), ("lora", "exclude_modules", ["q_proj"]),
        ("lora", "layer_replication", [[0, 1]]), ("lora", "use_qalora", True),
        ("lora", "target_parameters", ["w"]), ("lora", "trainable_token_indices", [1]),
        ("lora", "alora_invocation_tokens", [1]), ("lora", "use_bdlora", True),
        ("prompt", "modules_to_save", ["lm_head"]), ("prefix", "num_transformer_submodules", 2)]},
    **{f"HF's {init}": ("lora", lambda f, init=init: edit_config(f, init_lora_weights=init),
                        ValueError, f"init_lora_weights='{init}' has changed the base weights")
       for init in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")},
}


@pytest.mark.filterwarnings("ignore:.*ignoring the unknown key")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_changes_nothing(damage, saved, model, tmp_path):
    name, spoil, error, message = DAMAGE[damage]
    folder = tmp_path / name
    shutil.copytree(saved / name, folder)
    spoil(folder)
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[0].eval()
    with refused(model, error, message):
        PeftModel.from_pretrained(model, folder)
    peft_model = get_peft_model(model, HoulsbyConfig(4))
    with refused(peft_model, error, message):
        peft_model.load_adapter(folder, "second")
    assert list(peft_model.peft_config) == ["default"]


@pytest.mark.parametrize("method", CONFIGS)
def test_an_unknown_key_gives_a_warning_and_the_adapter(method, saved, model, ids, tmp_path):
    expected = PeftModel.from_pretrained(model, saved / method)(ids)
    shutil.copytree(saved / method, tmp_path / method)
    edit_config(tmp_path / method, invented_in_2031=[1])
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="ignoring the unknown key 'invented_in_2031'") as caught:
        loaded = PeftModel.from_pretrained(GPT(SMALL), tmp_path / method)
    assert torch.equal(loaded(ids), expected)
    assert caught[0].filename == __file__, "the warning points at the caller's line"


def test_an_adapter_on_the_meta_device_has_nothing_to_save(tmp_path):
    with torch.device("meta"):
        peft_model = get_peft_model(GPT(SMALL), LoraConfig())
    with pytest.raises(ValueError, match="on the meta device: it has shapes, but no numbers"):
        peft_model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
