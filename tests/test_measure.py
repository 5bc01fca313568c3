"""Counted bytes against counts by hand."""
import gc
import weakref

import torch
from conftest import SMALL
from torch import nn

from minipeft import GPT, GPTConfig, LoraConfig, PromptTuningConfig, get_peft_model, quantize_model
from minipeft.measure import (interleaved, nbytes, saved_activations, saved_tensors,
                              training_bytes)
from minipeft.peft_model import count_parameters


class Bigram(nn.Module):
    """Embedding, linear: few enough tensors to count what autograd must keep."""

    def __init__(self, V=11, C=6):
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, C), nn.Linear(C, V, bias=False)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_saved_activations_are_those_counted_by_hand():
    model, ids = Bigram(), torch.randint(0, 11, (2, 5))
    found, _ = saved_activations(model, (ids, ids))
    # N = 2 rows x 4 predicted tokens. Kept for backward: the ids of the embedding (10 int64), the
    # input of the head (10 x 6 floats), the mask that picks N of 10 positions (10 bool), the
    # log-probabilities (N x 11 floats), the targets (N int64), and the number that nll_loss divides
    # by (1 float).
    N = 8
    by_hand = 10 * 8 + 10 * 6 * 4 + 10 + N * 11 * 4 + N * 8 + 4
    assert found == by_hand


def test_a_frozen_head_keeps_no_input_but_its_lora_does():
    ids = torch.randint(0, 11, (2, 5))
    full, _ = saved_activations(Bigram(), (ids, ids))
    frozen = Bigram()
    frozen.head.requires_grad_(False)
    without, _ = saved_activations(frozen, (ids, ids))
    assert full - without == 10 * 6 * 4                          # x, that only dW = g x^T needs
    lora, _ = saved_activations(get_peft_model(Bigram(), LoraConfig(r=2, target_modules=["head"])),
                                (ids, ids))
    # the embedding is frozen too (its 10 ids are not kept); A keeps x again, B keeps A x: LoRA
    # does not save activations
    assert lora - without == 10 * 6 * 4 + 10 * 2 * 4 - 10 * 8


def test_weights_gradients_and_optimizer_follow_from_the_parameter_counts(model, ids):
    n = sum(p.numel() for p in model.parameters())
    found = training_bytes(model, (ids, ids))
    assert (found.weights, found.gradients, found.optimizer) == (4 * n, 4 * n, 8 * n)
    assert found.total == 16 * n + found.activations
    peft_model = get_peft_model(model, LoraConfig(r=4))
    trainable = 2 * 4 * (32 + 32 + 32 + 16)
    found = training_bytes(peft_model, (ids, ids))
    assert (found.weights, found.gradients, found.optimizer) == (
        4 * (n + trainable), 4 * trainable, 8 * trainable)


def test_counting_changes_no_weight(model, ids):
    before = [p.clone() for p in model.parameters()]
    training_bytes(model, (ids, ids))
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_a_four_bit_layer_counts_its_weights_and_weighs_its_codes():
    sizes = {**vars(SMALL), "hidden_size": 64, "head_dim": None, "intermediate_size": 128}
    base = GPT(GPTConfig(**sizes))
    linears = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    others = 2 * 61 * 64 + 5 * 64
    quantize_model(base, double_quant=False)
    assert count_parameters(base) == (others, linears + others)
    # half a byte a weight, a float32 absmax for 64 of them
    assert nbytes([*base.parameters(), *base.buffers()]) == 4 * others + linears * 9 // 16


def test_tied_weights_and_views_count_once():
    x = torch.zeros(10, 10)
    assert nbytes([x, x[0], x.T, torch.zeros(3)]) == 400 + 12


def test_a_soft_prompt_saves_parameters_but_adds_activations(model, ids):
    plain = training_bytes(model, (ids, ids)).activations
    prompt = training_bytes(get_peft_model(model, PromptTuningConfig(20)), (ids, ids)).activations
    assert prompt > plain


def test_interleaved_calls_every_function_once_a_round_in_turn():
    order = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")},
                          rounds=4, warmup=1)
    assert order == ["a", "b"] * 5
    assert all(t.low <= t.median <= t.high for t in timings.values())


def test_what_was_counted_is_freed_without_a_backward_pass():
    """exp and softmax keep their own results for the backward pass."""
    x = torch.ones(1000, requires_grad=True)
    saved, y = saved_tensors(nn.Identity(), lambda: x.exp().softmax(0))
    assert sorted(t.numel() for t in saved) == [1000, 1000]
    result = weakref.ref(y)
    del saved, y
    gc.collect()
    assert result() is None
