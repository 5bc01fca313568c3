"""GPT is transformers' LlamaForCausalLM."""
import pytest

pytest.importorskip("transformers")

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from minipeft.gpt import pad_left
from minipeft.train import batch_loss

from .peers import IDS, MODELS, UNEQUAL, pair, to_dtype

AGAINST = "`transformers.LlamaForCausalLM`"
ALL_TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
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


def hf_generate(model, n, eos_token_id, batch=ALL_TEXT):
    # explicit: LlamaConfig's default eos_token_id=2 would end some rows early
    return model.generate(**batch, generation_config=GenerationConfig(
        max_new_tokens=n, do_sample=False, eos_token_id=eos_token_id, pad_token_id=eos_token_id))


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


def test_a_left_padded_batch_is_llamas_with_the_same_mask(models, compare):
    """Loss and gradients too, of tokens behind tokens: the logits of padding mean nothing on either
    side, so that a row's first token has no label."""
    ours, theirs = models
    batch = pad_left(UNEQUAL)
    real = batch["attention_mask"].bool()
    logits, their_logits = ours(**batch)[real], theirs(**batch).logits[real]
    compare("GPT: logits of a padded batch", AGAINST, logits, their_logits, SUM_ORDER)
    labels = batch["input_ids"].masked_fill(~real.roll(1, dims=1), -100)
    F.cross_entropy(ours(**batch)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    theirs(**batch, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        compare("GPT: gradients of a padded batch", AGAINST, p.grad, gradients[name], SUM_ORDER)
    new = ours.generate(**batch, max_new_tokens=12)
    compare("GPT: greedy tokens of a padded batch", AGAINST, new,
            hf_generate(theirs, 12, None, batch), 0)
    eos = new[0, batch["input_ids"].shape[1] + 1].item()
    compare("GPT: greedy tokens of a padded batch", AGAINST,
            ours.generate(**batch, max_new_tokens=12, eos_token_id=eos),
            hf_generate(theirs, 12, eos, batch), 0)


def test_bfloat16_logits_of_a_left_padded_batch_are_llamas(models, compare):
    ours, theirs = to_dtype(*models, torch.bfloat16)
    batch = pad_left(UNEQUAL)
    real = batch["attention_mask"].bool()
    compare("GPT: logits of a padded batch, bfloat16", AGAINST, ours(**batch)[real].float(),
            theirs(**batch).logits[real].float(), 3 / 32)     # as without padding
