"""QLoRA is bitsandbytes' Linear4bit under HuggingFace PEFT's LoRA."""
import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

import bitsandbytes as bnb
import peft
import torch
from torch import nn

from minipeft import GPT, GPTConfig, LoraConfig, PeftModel, get_peft_model, quantize_model
from minipeft.adapter import replace_modules
from minipeft.nf4 import NF4Linear
from minipeft.train import TrainConfig, train

from .peers import IDS, cross_entropy, loads_quietly, pair

AGAINST = "`bitsandbytes` + `peft`"
# widths that bitsandbytes' CPU kernels get right: last dimensions that are multiples of 64
SIZES = GPTConfig(vocab_size=61, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
SAME = 1e-5      # the same 4-bit weights; products of 64 to 128 terms may be summed in other orders


def to_linear4bit(linear: nn.Linear, double_quant: bool) -> bnb.nn.Linear4bit:
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None,
                              compute_dtype=linear.weight.dtype, quant_type="nf4",
                              compress_statistics=double_quant)
    layer.load_state_dict(linear.state_dict())
    # without this an evaluation forward on AVX512_BF16 CPUs repacks the weight, in bfloat16
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")                  # moving it is what quantizes it


def bnb_quantized(model: nn.Module, double_quant: bool) -> nn.Module:
    """What transformers does for load_in_4bit: every nn.Linear but the head."""
    replace_modules(model, {path: to_linear4bit(module, double_quant)
                            for path, module in model.named_modules()
                            if type(module) is nn.Linear and path != "lm_head"})
    return model.eval()


@pytest.fixture(params=[True, False], ids=["double quantization", "single quantization"])
def models(request):
    gpt, llama = pair(SIZES)
    return (quantize_model(gpt, double_quant=request.param), bnb_quantized(llama, request.param))


def linears(ours: GPT, theirs: nn.Module):
    for path, module in ours.named_modules():
        if isinstance(module, NF4Linear):
            yield module, theirs.get_submodule(path)


def adapted(llama):
    torch.manual_seed(3)
    return peft.get_peft_model(llama, peft.LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False,
        task_type="CAUSAL_LM")).eval()


def test_the_stored_bytes_are_bitsandbytes(models, compare):
    assert len(list(linears(*models))) == 14
    for mine, theirs in linears(*models):
        state, their_state = mine.quant_state, theirs.weight.quant_state
        compare("NF4: packed codes", "`bitsandbytes`", mine.packed, theirs.weight.data, 0)
        compare("NF4: absmax", "`bitsandbytes`", state.absmax, their_state.absmax, 0)
        compare("NF4: dequantized weights", "`bitsandbytes`", mine.dequantize(),
                bnb.functional.dequantize_4bit(theirs.weight.data, their_state), 0)
        mine, theirs = state.as_dict(packed=True), their_state.as_dict(packed=True)
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"quant_state.bitsandbytes__nf4"}:
            compare("NF4: statistics in the state dict", "`bitsandbytes`", mine[key], theirs[key],
                    0)
        mine, theirs = (json.loads(bytes(d["quant_state.bitsandbytes__nf4"].tolist()))
                        for d in (mine, theirs))
        offsets = [d.pop("nested_offset", 0.0) for d in (mine, theirs)]
        assert mine == theirs
        # a mean of absmax of size 1 in float32, whose sum may run in another order
        compare("NF4: offset of the double quantization", "`bitsandbytes`",
                *map(torch.tensor, offsets), 1e-7)


def test_the_quantized_model_computes_the_same(models, compare):
    ours, theirs = models
    compare("NF4 model: logits", "`bitsandbytes`", ours(IDS), theirs(IDS).logits, SAME)


def test_an_adapter_computes_and_learns_the_same(models, tmp_path, compare):
    gpt, llama = models
    theirs = adapted(llama)
    theirs.save_pretrained(tmp_path)
    ours = loads_quietly(PeftModel.from_pretrained, gpt, tmp_path, is_trainable=True)
    logits, their_logits = ours(IDS), theirs(IDS).logits
    compare("QLoRA: their file here, logits", AGAINST, logits, their_logits, SAME)
    cross_entropy(logits).backward()
    cross_entropy(their_logits).backward()
    gradients = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters()
                 if p.requires_grad}
    assert len(gradients) == 2 * 14
    for path, adapter in ours.adapter_sets["default"].items():
        for name, p in adapter.own_state().items():
            compare("QLoRA: gradients", AGAINST, p.grad,
                    gradients[f"base_model.model.{path}.{name}"], SAME)


def test_an_adapter_trained_here_loads_there(models, tmp_path, compare):
    gpt, llama = models
    ours = get_peft_model(gpt, LoraConfig(r=4, target_modules="all-linear"))
    train(ours, iter(lambda: (IDS, IDS), None), TrainConfig(lr=1e-2, warmup_steps=0), 5)
    ours.save_pretrained(tmp_path)
    theirs = loads_quietly(peft.PeftModel.from_pretrained, llama, tmp_path)
    compare("QLoRA: our file there, logits", AGAINST, ours.eval()(IDS), theirs(IDS).logits, SAME)


def test_fifty_steps_give_their_losses(models, tmp_path, compare):
    gpt, llama = models
    theirs = adapted(llama)
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(gpt, tmp_path, is_trainable=True)
    config = TrainConfig(lr=1e-2, warmup_steps=5)
    losses = train(ours, iter(lambda: (IDS, IDS), None), config, 50).loss
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad],
                                  betas=config.betas, weight_decay=0.0)
    expected = []
    theirs.train()
    for step in range(50):
        optimizer.param_groups[0]["lr"] = config.lr_at(step, 50)
        loss = theirs(input_ids=IDS, labels=IDS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses[-1] < losses[0] - 1
    # AdamW divides by sqrt(v): rounding in tiny gradients comes back at full size, step after step
    compare("QLoRA: 50 losses of training", AGAINST, torch.tensor(losses), torch.tensor(expected),
            1e-3)


def test_merging_gives_their_dequantized_weights_plus_the_update(models, tmp_path, compare):
    """They quantize the sum again, which loses most of a small update; ours stays in float."""
    gpt, llama = models
    theirs = adapted(llama)
    theirs.save_pretrained(tmp_path)
    expected = {}
    for path in (path for path, m in theirs.named_modules() if hasattr(m, "get_delta_weight")):
        layer = theirs.get_submodule(path)
        W = bnb.functional.dequantize_4bit(layer.base_layer.weight.data,
                                           layer.base_layer.weight.quant_state)
        expected[path.removeprefix("base_model.model.")] = W + layer.get_delta_weight("default")
    ours = PeftModel.from_pretrained(gpt, tmp_path)
    logits, merged = ours(IDS), ours.merge_and_unload()
    assert len(expected) == 14
    for path, W in expected.items():
        # s multiplies B here and B A there: 1 ulp of the update
        compare("QLoRA: merged weights", AGAINST, merged.get_submodule(path).weight.data,
                W.detach(), 1e-6)
    compare("QLoRA: merged logits", "itself, unmerged", merged(IDS), logits, SAME)
