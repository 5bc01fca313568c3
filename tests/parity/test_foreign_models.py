"""LoRA and QLoRA of minipeft work on models of transformers as HuggingFace PEFT's do."""
import copy

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
import transformers as hf

from minipeft import LoraConfig, PeftModel, get_peft_model, quantize_model
from minipeft.nf4 import NF4Linear

from .peers import IDS, loads_quietly

AGAINST = "`peft`"
SAME = 1e-5     # y + s B A x is rounded once here and three times there, then layers of sums
MERGED = 1e-5   # s multiplies B here and B A there: 1 ulp of a weight, then two layers of sums
SMALL = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)

# name: (a tiny random model, its attention's targets in HF PEFT's own map)
MODELS = {
    "Llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
        **SMALL, intermediate_size=64, num_key_value_heads=2)), ["q_proj", "v_proj"]),
    "GPT-2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)), ["c_attn"]),
    "OPT": (lambda: hf.OPTForCausalLM(hf.OPTConfig(
        **SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64)),
        ["q_proj", "v_proj"]),
    "BERT": (lambda: hf.BertModel(hf.BertConfig(
        **SMALL, intermediate_size=64, max_position_embeddings=64)), ["query", "value"]),
}


@pytest.fixture(params=MODELS)
def case(request):
    """(name, a model, its twin, targets)"""
    make, targets = MODELS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    return request.param, model, copy.deepcopy(model), targets


def output(model):
    return model(input_ids=IDS)[0]


def stir(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.2)
    return model


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_lora_of_hf_peft_computes_and_merges_the_same_here(case, targets, tmp_path, compare):
    name, model, twin, attention = case
    theirs = stir(peft.get_peft_model(twin, peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=attention if targets == "attention" else targets)))
    theirs.eval().save_pretrained(tmp_path)
    bare = output(model)
    ours = loads_quietly(PeftModel.from_pretrained, model, tmp_path)
    assert (output(ours) - bare).abs().max() > 0.01, "the adapter does something"
    compare(f"LoRA on {name}: their file here, output", AGAINST, output(ours), output(theirs), SAME)
    merged, expected = ours.merge_and_unload(), theirs.merge_and_unload()
    assert merged.state_dict().keys() == expected.state_dict().keys()
    for key, weight in expected.state_dict().items():
        compare(f"LoRA on {name}: merged weights", AGAINST, merged.state_dict()[key], weight, SAME)
    compare(f"LoRA on {name}: merged output", AGAINST, output(merged), output(expected),
            MERGED)


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_lora_saved_here_computes_the_same_there(case, targets, tmp_path, compare):
    name, model, twin, attention = case
    ours = stir(get_peft_model(model, LoraConfig(
        r=4, use_rslora=True, target_modules=attention if targets == "attention" else targets)))
    ours.save_pretrained(tmp_path)
    theirs = loads_quietly(peft.PeftModel.from_pretrained, twin, tmp_path)
    compare(f"LoRA on {name}: our file there, output", AGAINST, output(ours), output(theirs), SAME)
    assert (ours.get_nb_trainable_parameters()[1] == theirs.get_nb_trainable_parameters()[1])


def test_gradients_on_other_peoples_models_are_theirs(case, tmp_path, compare):
    name, model, twin, attention = case
    theirs = stir(peft.get_peft_model(twin, peft.LoraConfig(r=4, target_modules=attention))).eval()
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(model, tmp_path, is_trainable=True)
    for adapted in (ours, theirs):
        output(adapted).square().mean().backward()
    gradients = {key.replace(".default", ""): p.grad for key, p in theirs.named_parameters()
                 if p.requires_grad}
    for path, adapter in ours.adapter_sets["default"].items():
        for key, p in adapter.own_state().items():
            compare(f"LoRA on {name}: gradients", AGAINST, p.grad,
                    gradients.pop(f"base_model.model.{path}.{key}"), SAME)
    assert not gradients


def test_qlora_works_on_them_and_merges_into_plain_layers(case, compare):
    """GPT-2's Conv1D is no nn.Linear and stays as it is."""
    name, model, *_ = case
    heads = {"Llama": "lm_head", "OPT": "lm_head", "BERT": "pooler.dense", "GPT-2": "lm_head"}
    if name == "GPT-2":
        with pytest.raises(ValueError, match="needs a model that holds nn.Linear"):
            quantize_model(model)
        return
    quantized = quantize_model(model, skip=(heads[name],))
    frozen = output(quantized).detach()
    ours = get_peft_model(quantized, LoraConfig(r=4, target_modules="all-linear"))
    assert torch.equal(output(ours), frozen), "B = 0: starts as the quantized base"
    stir(ours)
    output(ours).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for key, p in ours.named_parameters()
               if p.requires_grad and (name != "BERT" or "pooler" not in key))
    adapted = output(ours).detach()
    merged = ours.merge_and_unload()
    assert not any(isinstance(module, NF4Linear) for module in merged.modules())
    compare(f"QLoRA on {name}: merged output", "itself, unmerged", output(merged), adapted, MERGED)


def llama(vocab, C, F, L, heads, kv_heads, tied=False):
    return hf.LlamaForCausalLM, hf.LlamaConfig(
        vocab_size=vocab, hidden_size=C, intermediate_size=F, num_hidden_layers=L,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied)


def opt(C, F, L, heads):
    return hf.OPTForCausalLM, hf.OPTConfig(
        vocab_size=50272, hidden_size=C, ffn_dim=F, num_hidden_layers=L, num_attention_heads=heads,
        word_embed_proj_dim=C, max_position_embeddings=2048)


# the published sizes of each model; (r, targets): (trainable, all), HF PEFT's counts
Q_V, ALL = ["q_proj", "v_proj"], "all-linear"
COUNTS = {
    "llama-2-7b": (llama(32000, 4096, 11008, 32, 32, 32),
                   [(8, Q_V, 4_194_304, 6_742_609_920), (16, ALL, 39_976_960, 6_778_392_576),
                    (64, ALL, 159_907_840, 6_898_323_456)]),
    "llama-3-8b": (llama(128256, 4096, 14336, 32, 32, 8),
                   [(8, Q_V, 3_407_872, 8_033_669_120), (16, ALL, 41_943_040, 8_072_204_288)]),
    "mistral-7b": (llama(32000, 4096, 14336, 32, 32, 8),
                   [(8, Q_V, 3_407_872, 7_245_139_968), (16, ALL, 41_943_040, 7_283_675_136)]),
    "tinyllama-1.1b": (llama(32000, 2048, 5632, 22, 32, 4),
                       [(8, Q_V, 1_126_400, 1_101_174_784), (16, ALL, 12_615_680, 1_112_664_064)]),
    "smollm2-135m": (llama(49152, 576, 1536, 30, 9, 3, tied=True),
                     [(8, Q_V, 460_800, 134_975_808), (16, ALL, 4_884_480, 139_399_488)]),
    "gpt2": ((hf.GPT2LMHeadModel, hf.GPT2Config()),
             [(8, ["c_attn"], 294_912, 124_734_720), (16, ALL, 2_359_296, 126_799_104)]),
    "gpt2-xl": ((hf.GPT2LMHeadModel, hf.GPT2Config(n_embd=1600, n_layer=48, n_head=25)),
                [(8, ["c_attn"], 2_457_600, 1_560_068_800), (16, ALL, 19_660_800, 1_577_272_000)]),
    "opt-125m": (opt(768, 3072, 12, 12), [(16, Q_V, 589_824, 125_829_120)]),
    "opt-6.7b": (opt(4096, 16384, 32, 32), [(16, Q_V, 8_388_608, 6_666_862_592)]),
    "bert-base": ((hf.BertModel, hf.BertConfig()),
                  [(8, ["query", "value"], 294_912, 109_777_152)]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_at_full_size_are_hf_pefts(name):
    (kind, config), rows = COUNTS[name]
    with torch.device("meta"):
        model = kind(config)
        model.tie_weights()
        for r, targets, *counts in rows:
            ours = get_peft_model(model, LoraConfig(r=r, target_modules=targets))
            assert list(ours.get_nb_trainable_parameters()) == counts
            ours.unload()
        r, targets, *counts = rows[0]
        theirs = peft.get_peft_model(model, peft.LoraConfig(r=r, target_modules=targets))
    assert list(theirs.get_nb_trainable_parameters()) == counts
