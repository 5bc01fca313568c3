"""GPT is transformers' LlamaForCausalLM."""
import pytest

pytest.importorskip("transformers")

import torch
from transformers import GenerationConfig

from minipeft.train import batch_loss

from .peers import IDS, MODELS, pair, to_dtype

AGAINST = "`transformers.LlamaForCausalLM`"
SUM_ORDER = 1e-5      # float32 sums of 32 to 64 terms of size 1, in another order, over two layers


@pytest.fixture(params=MODELS)
def models(request):
    return pair(MODELS[request.param])


def test_the_logits_are_llamas(models, compare):
    ours, theirs = models
    compare("GPT: logits", AGAINST, ours(IDS), theirs(IDS).logits, SUM_ORDER)


def test_the_loss_and_every_gradient_are_llamas(models, compare):
    ours, theirs = models
    labels = IDS.masked_fill(IDS % 5 == 0, -100)
    loss, their_loss = batch_loss(ours, (IDS, labels)), theirs(IDS, labels=labels).loss
    compare("GPT: loss with masked labels", AGAINST, loss, their_loss, SUM_ORDER)
    loss.backward()
    their_loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, p in ours.named_parameters():
        compare("GPT: gradients", AGAINST, p.grad, gradients[name], SUM_ORDER)


def test_bfloat16_logits_are_llamas(models, compare):
    ours, theirs = to_dtype(*models, torch.bfloat16)
    # bfloat16 keeps 8 bits: logits of size 4 have steps of 1/32. They round inside attention, which
    # is float32 here on a CPU, so that up to three steps lie between the two
    compare("GPT: logits, bfloat16", AGAINST, ours(IDS).float(), theirs(IDS).logits.float(), 3 / 32)


def uncached(model, ids, n):
    for _ in range(n):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def hf_generate(model, n, eos_token_id):
    # explicit: LlamaConfig's default eos_token_id=2 would end some rows early
    return model.generate(IDS, generation_config=GenerationConfig(
        max_new_tokens=n, do_sample=False, eos_token_id=eos_token_id, pad_token_id=eos_token_id),
        attention_mask=torch.ones_like(IDS))


def test_greedy_generation_is_llamas_with_and_without_a_cache(models, compare):
    ours, theirs = models
    out = ours.generate(IDS, 12)
    assert torch.equal(out, uncached(ours, IDS, 12))
    compare("GPT: greedy tokens", AGAINST, out, hf_generate(theirs, 12, None), 0)


def test_rows_end_at_the_eos_token_as_llamas_do(models, compare):
    ours, theirs = models
    new = ours.generate(IDS, 12)[:, IDS.shape[1]:]
    eos = new[0, 1].item()         # so that the first row ends at its second token at the latest
    out = ours.generate(IDS, 12, eos_token_id=eos)
    assert (out[0, IDS.shape[1] + 1:] == eos).all()
    compare("GPT: greedy tokens", AGAINST, out, hf_generate(theirs, 12, eos), 0)
