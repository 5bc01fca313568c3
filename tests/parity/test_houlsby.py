"""Houlsby adapters are adapter-hub's `double_seq_bn`; HuggingFace PEFT has none.

    double_seq_bn, behind attention and behind the MLP:    y = h + scaling * up(g(down(h)))

The package `adapters` 1.3 pins transformers 4.57 and so cannot stand beside the transformers 5 of
the other tests; the last test runs in an environment that has it.
"""
import itertools
import json

import pytest

pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import get_activation

from minipeft import HoulsbyConfig, get_peft_model
from minipeft.houlsby import NON_LINEARITIES

from .peers import IDS, MODELS, pair

SAME = 1e-6      # float32 sums of 32 terms of size 1


def stirred(gpt, non_linearity="gelu"):
    torch.manual_seed(3)
    ours = get_peft_model(gpt, HoulsbyConfig(8, non_linearity)).eval()
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.copy_(torch.randn_like(p) * 0.2)
    return ours


@pytest.mark.parametrize("non_linearity", NON_LINEARITIES)
def test_the_model_computes_adapter_hubs_formula(non_linearity, compare):
    """Their hook order in a Llama layer, written out over the frozen modules by hand."""
    gpt, _ = pair(MODELS["grouped heads, untied"])
    ours = stirred(gpt, non_linearity)
    g = get_activation(non_linearity)

    def bottleneck(h, adapter):
        down, up = adapter.adapter_down, adapter.adapter_up
        z = g(torch.einsum("btc,mc->btm", h, down.weight) + down.bias)
        return 1.0 * (torch.einsum("btm,cm->btc", z, up.weight) + up.bias) + h   # scaling 1.0

    x = gpt.model.embed_tokens(IDS)
    for layer in gpt.model.layers:
        h = layer.self_attn.base_layer(layer.input_layernorm(x))
        x = x + bottleneck(h, layer.self_attn)
        h = layer.mlp.base_layer(layer.post_attention_layernorm(x))
        x = x + bottleneck(h, layer.mlp)
    compare("Houlsby: logits", "adapter-hub's formula", ours(IDS), gpt.lm_head(gpt.model.norm(x)),
            SAME)


def test_hf_peft_refuses_the_file_by_its_peft_type(tmp_path):
    peft = pytest.importorskip("peft")
    gpt, llama = pair(MODELS["heads, untied"])
    get_peft_model(gpt, HoulsbyConfig(8)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "HOULSBY"
    before = llama(IDS).logits
    with pytest.raises(KeyError, match="HOULSBY"):
        peft.PeftModel.from_pretrained(llama, tmp_path)
    assert torch.equal(llama(IDS).logits, before)


def test_the_adapters_package_computes_the_same(compare):
    hub = pytest.importorskip("adapters", reason="adapters 1.3 wants transformers 4.57")
    places = {"self_attn": "attention_adapters", "mlp": "output_adapters"}
    for sizes, non_linearity in itertools.product(MODELS.values(), NON_LINEARITIES):
        gpt, _ = pair(sizes)
        llama = LlamaForCausalLM(LlamaConfig(**vars(sizes)))
        llama.load_state_dict(gpt.state_dict())
        hub.init(llama)
        llama.add_adapter("a", config=hub.DoubleSeqBnConfig(reduction_factor=4,
                                                            non_linearity=non_linearity))
        llama.set_active_adapters("a")
        ours = stirred(gpt, non_linearity)
        for path, adapter in ours.adapter_sets["default"].items():
            layer, _, place = path.rpartition(".")
            theirs = llama.get_submodule(f"{layer}.{places[place]}.adapters.a")
            theirs.adapter_down[0].load_state_dict(adapter.adapter_down.state_dict())
            theirs.adapter_up.load_state_dict(adapter.adapter_up.state_dict())
        compare("Houlsby: logits", "`adapters`", ours(IDS), llama.eval()(IDS).logits, SAME)
