"""The loop: losses against the formula, AdamW against torch's own, errors."""
import math

import pytest
import torch

from minipeft import LoraConfig, get_peft_model
from minipeft.train import (IGNORE, TrainConfig, accumulate, batch_loss, evaluate,
                            offers_logits_at, train)


class OnlyLogits(torch.nn.Module):
    """A model without `logits_at`, as other people's are."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids):
        return self.inner(input_ids)


@pytest.fixture
def labels(ids):
    labels = ids.clone()
    labels[:, :3] = IGNORE
    labels[1, 5] = IGNORE
    return labels


def by_loops(model, ids, labels):
    """(mean loss, exact match) one token at a time."""
    losses, rows = [], []
    for row in range(len(ids)):
        right = True
        for t in range(1, ids.shape[1]):
            if labels[row, t] != IGNORE:
                logits = model(ids[row:row + 1, :t])[0, -1]      # the past only
                losses.append((logits.logsumexp(0) - logits[labels[row, t]]).item())
                right &= int(logits.argmax()) == int(labels[row, t])
        rows.append(right)
    return sum(losses) / len(losses), sum(rows) / len(rows)


@pytest.mark.parametrize("wrap", [lambda model: model, OnlyLogits,
                                  lambda model: get_peft_model(model, LoraConfig(r=2))])
def test_loss_and_exact_match_are_the_formula_by_loops(model, ids, labels, wrap):
    wrapped = wrap(model)
    labels[0] = torch.where(labels[0] == IGNORE, IGNORE, 0)
    best = wrapped(ids)[2].argmax(-1)                           # make row 2 an exact match
    labels[2, 3:] = best[2:6]
    loss, exact = by_loops(wrapped, ids, labels)
    assert batch_loss(wrapped, (ids, labels)).item() == pytest.approx(loss, rel=1e-5)
    assert evaluate(wrapped, (ids, labels)) == pytest.approx((loss, exact), rel=1e-5)
    assert exact >= 1 / 3


def test_the_head_is_asked_for_labels_only_where_the_model_can(model):
    assert offers_logits_at(model) and offers_logits_at(get_peft_model(model, LoraConfig(r=2)))
    assert not offers_logits_at(OnlyLogits(model))


def test_training_is_adamw_with_clipping_and_the_schedule_step_by_step(model, ids):
    import copy
    twin, config = copy.deepcopy(model), TrainConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1,
                                                     max_grad_norm=0.5)
    history = train(model, [(ids, ids)] * 5, config, 5)
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    for step, lr in enumerate([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3]):
        optimizer.param_groups[0]["lr"] = lr
        logits = twin(ids)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
        assert history.grad_norm[step] == pytest.approx(norm, rel=1e-4)
        for p in twin.parameters():
            p.grad *= min(1.0, 0.5 / norm)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters()):
        # five Adam steps divide by sqrt(v): rounding of tiny gradients is amplified to 1e-5
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_the_schedule_warms_up_stays_flat_and_decays():
    config = TrainConfig(lr=1.0, warmup_steps=4, flat=0.5)
    rates = [config.lr_at(step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:11] == [1.0] * 7
    assert rates[-1] == pytest.approx(0.1) and rates == sorted(rates[:4]) + rates[4:]


def test_only_what_requires_a_gradient_moves(model, ids):
    peft_model = get_peft_model(model, LoraConfig(r=2))
    before = {name: p.clone() for name, p in peft_model.named_parameters()}
    train(peft_model, [(ids, ids)] * 3, TrainConfig(lr=1e-2), 3)
    moved = {name for name, p in peft_model.named_parameters()
             if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_a_progress_bar_sees_every_step(model, ids):
    seen = []

    def progress(steps):
        for item in steps:
            seen.append(item[0])
            yield item
    train(model, [(ids, ids)] * 4, TrainConfig(lr=1e-3), 4, progress)
    assert seen == [0, 1, 2, 3]


def test_nothing_trainable_a_loss_that_diverges_and_missing_batches_are_errors(model, ids):
    with pytest.raises(ValueError, match="wants 3 batches, got 2"):
        train(model, [(ids, ids)] * 2, TrainConfig(lr=1e-3), 3)
    with pytest.raises(ValueError, match="trainable parameters, got none"):
        train(model.requires_grad_(False), [(ids, ids)], TrainConfig(lr=1e-3), 1)
    model.requires_grad_(True)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan.*try a learning rate"):
        train(model, [(ids, ids)], TrainConfig(lr=1e-3), 1)


@pytest.mark.parametrize("bad", [
    {"lr": 0}, {"lr": -1}, {"lr": float("nan")}, {"lr": float("inf")},
    {"lr": 1, "warmup_steps": -1}, {"lr": 1, "flat": 1},
    {"lr": 1, "max_grad_norm": -1}, {"lr": 1, "max_grad_norm": float("nan")},
    {"lr": 1, "warmup_steps": float("nan")}, {"lr": 1, "warmup_steps": float("inf")},
    {"lr": 1, "betas": (0.9, 1.0)}, {"lr": 1, "betas": (float("nan"), 0.9)},
    {"lr": 1, "weight_decay": float("nan")}, {"lr": 1, "weight_decay": -0.1}])
def test_a_config_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="TrainConfig wants lr > 0"):
        TrainConfig(**bad)


def test_a_step_begins_without_the_gradients_that_something_else_has_left(model, ids):
    import copy
    twin = copy.deepcopy(model)
    batch_loss(twin, (ids, ids)).backward()                     # left behind
    one, other = (train(m, [(ids, ids)] * 2, TrainConfig(lr=1e-2), 2) for m in (model, twin))
    assert one.grad_norm == other.grad_norm and one.loss == other.loss


def test_a_batch_without_a_label_has_no_loss_and_no_exact_match(model, ids):
    batch = (ids, torch.full_like(ids, IGNORE))
    for call in (evaluate, lambda m, b: accumulate(m, [b])):
        with pytest.raises(ValueError, match="wants labelled tokens, got none"):
            call(model.train(), batch)
        assert model.training
    only_first = torch.where(torch.arange(ids.shape[1]) == 0, ids, IGNORE)
    with pytest.raises(ValueError, match="stands at a row's first position"):
        accumulate(model, [(ids, only_first)])
