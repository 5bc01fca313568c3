"""One contract that every method keeps. A new method adds its configs to CASES and passes."""
import copy

import pytest
import torch
from conftest import SMALL, UNEQUAL
from torch import nn

from minipeft import (GPT, HoulsbyConfig, LoraConfig, PeftModel, PrefixTuningConfig,
                      PromptTuningConfig, get_peft_model, quantize_model)
from minipeft.gpt import pad_left
from minipeft.peft_model import METHODS
from minipeft.train import TrainConfig, train

L, C, F, V = 2, 32, 64, 61         # layers, width, MLP width, vocabulary of the small model
KV = 16                            # width of keys and values: 2 heads of 8
LINEARS = [(C, C), (C, KV), (C, KV), (C, C), (C, F), (C, F), (F, C)]    # q k v o gate up down

# name: (config, 4-bit base, starts as the base bitwise, can be merged, trainable numbers)
CASES = {
    "lora": (LoraConfig(r=4), False, True, True, L * 4 * ((C + C) + (C + KV))),
    "lora all-linear": (LoraConfig(r=2, target_modules="all-linear", init_lora_weights=True),
                        False, True, True, L * sum(2 * (i + o) for i, o in LINEARS)),
    "rslora dropout": (LoraConfig(r=4, use_rslora=True, lora_dropout=0.5, lora_alpha=3,
                                  target_modules=["o_proj", "mlp.down_proj"]),
                       False, True, True, L * 4 * ((C + C) + (F + C))),
    "qlora": (LoraConfig(r=4, target_modules="all-linear"), True, True, True,
              L * sum(4 * (i + o) for i, o in LINEARS)),
    "prompt random": (PromptTuningConfig(5), False, False, False, 5 * C),
    "prompt vocabulary": (PromptTuningConfig(70, "SAMPLE_VOCAB"), False, False, False, 70 * C),
    "prompt text": (PromptTuningConfig(5, "TEXT", "ab", lambda text: [7, 9]), False, False, False,
                    5 * C),
    "prefix": (PrefixTuningConfig(5), False, False, False, 2 * L * 5 * KV),
    "prefix vocabulary": (PrefixTuningConfig(5, prefix_init="SAMPLE_VOCAB"), False, False, False,
                          2 * L * 5 * KV),
    "prefix projection": (PrefixTuningConfig(5, True, 24), False, False, False,
                          5 * KV + (KV * 24 + 24) + (24 * 2 * L * KV + 2 * L * KV)),
    "houlsby": (HoulsbyConfig(6), False, False, False, 2 * L * (2 * C * 6 + 6 + C)),
}
LONG = 128                         # the vocabulary prompt has 70 vectors


@pytest.fixture(params=CASES)
def case(request):
    """(base model, config, starts as the base, can be merged, trainable numbers)"""
    config, four_bit, *rest = CASES[request.param]
    torch.manual_seed(0)
    base = GPT(type(SMALL)(**{**vars(SMALL), "max_position_embeddings": LONG}))
    return quantize_model(base) if four_bit else base, config, *rest


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def batches(ids):
    while True:
        yield ids, ids


def trained(model, config, ids, name="default", lr=1e-2, steps=12):
    peft_model = get_peft_model(model, config, name)
    history = train(peft_model, batches(ids), TrainConfig(lr=lr, warmup_steps=0), steps)
    return peft_model.eval(), history


def test_every_method_is_in_the_contract():
    assert {config.peft_type for config, *_ in CASES.values()} == set(METHODS)


def test_the_logits_keep_their_shape_and_lora_starts_as_the_base_bitwise(case, ids):
    base, config, starts_as_base, *_ = case
    before = base(ids)
    after = get_peft_model(base, config).eval()(ids)
    assert after.shape == before.shape
    if starts_as_base:
        assert torch.equal(after, before)
    elif config.peft_type == "HOULSBY":
        # up and down are N(0, 0.01^2): the branch is about 0.01^2 * sqrt(32 * 6) of the stream
        torch.testing.assert_close(after, before, rtol=0, atol=0.05)
        assert not torch.equal(after, before)
    else:
        assert (after - before).abs().max() > 1e-3


def test_the_loss_falls_and_every_trainable_tensor_moves(case, ids):
    base, config, *_ = case
    peft_model = get_peft_model(base, config)
    start = {name: p.detach().clone() for name, p in peft_model.named_parameters()
             if p.requires_grad}
    losses = train(peft_model, batches(ids), TrainConfig(lr=1e-2, warmup_steps=0), 30).loss
    assert losses[-1] < losses[0] - 0.05
    moved = dict(peft_model.named_parameters())
    assert all(not torch.equal(moved[name], start[name]) for name in start)


def test_frozen_tensors_stay_bitwise_and_unload_restores_the_base(case, ids):
    base, config, *_ = case
    frozen, flags, logits = snapshot(base), [p.requires_grad for p in base.parameters()], base(ids)
    peft_model, _ = trained(base, config, ids)
    assert not torch.equal(peft_model(ids), logits)
    with peft_model.disable_adapter():
        assert torch.equal(peft_model(ids), logits)
    restored = peft_model.unload()
    assert restored is base and same(snapshot(restored), frozen)
    assert [p.requires_grad for p in base.parameters()] == flags
    assert torch.equal(restored(ids), logits)


def test_the_trainable_count_is_the_closed_form(case):
    base, config, _, _, count = case
    base_size = sum(p.numel() for p in base.parameters()) + sum(
        m.in_features * m.out_features for m in base.modules() if hasattr(m, "dequantize"))
    assert get_peft_model(base, config).get_nb_trainable_parameters() == (count, base_size + count)


def test_saving_and_loading_is_bitwise(case, ids, tmp_path):
    base, config, *_ = case
    twin = copy.deepcopy(base)
    peft_model, _ = trained(base, config, ids)
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twin, tmp_path).eval()
    assert torch.equal(loaded(ids), peft_model(ids))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json",
                                                    "adapter_model.safetensors"}


def test_merging_equals_the_adapted_model_or_says_why_it_cannot(case, ids):
    base, config, _, can_merge, _ = case
    peft_model, _ = trained(base, config, ids)
    adapted, before = peft_model(ids), snapshot(peft_model)
    if not can_merge:
        with pytest.raises(TypeError, match="cannot be merged: .*; keep the adapter"):
            peft_model.merge_and_unload()
        assert same(snapshot(peft_model), before)
        return
    merged = peft_model.merge_and_unload()
    assert type(merged.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert not any("lora" in name for name in merged.state_dict())
    # W + sBA is rounded once and summed in another order: some ulp of logits of size 1
    torch.testing.assert_close(merged(ids), adapted, rtol=1e-4, atol=2e-5)


def test_adapters_take_turns_bitwise(case, ids):
    base, config, *_ = case
    peft_model, _ = trained(base, config, ids)
    first = peft_model(ids)
    peft_model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
    assert torch.equal(peft_model(ids), first), "adding does not activate"
    assert peft_model.active_adapter == "default"
    peft_model.set_adapter("second")
    with peft_model.disable_adapter():
        bare = peft_model(ids)
    assert torch.equal(peft_model(ids), bare), "B = 0: the second starts as the base"
    assert all("lora" in name for name, p in peft_model.named_parameters() if p.requires_grad)
    peft_model.set_adapter("default")
    assert torch.equal(peft_model(ids), first)
    peft_model.delete_adapter("second")
    assert torch.equal(peft_model(ids), first) and list(peft_model.peft_config) == ["default"]


def test_generate_uses_the_adapter_with_and_without_a_cache(case, ids):
    base, config, *_ = case
    peft_model, _ = trained(base, config, ids, lr=3e-2)
    out = ids
    for _ in range(6):
        out = torch.cat([out, peft_model(out)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(peft_model.generate(ids, 6), out)


def stirred_in_float64(base, config):
    """Every trained tensor away from its start; sums in another order then differ by 1e-15."""
    peft_model = get_peft_model(base.double(), config, adapter_dtype=torch.float64).eval()
    with torch.no_grad():
        for p in peft_model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.1)
    return peft_model


def test_rows_of_unequal_lengths_in_one_batch_are_the_rows_alone(case):
    """Logits, and greedy tokens with and without a cache, of the adapted model and the merged."""
    base, config, _, can_merge, _ = case
    model, batch = stirred_in_float64(base, config), pad_left(UNEQUAL)
    for form in ("adapted", "merged")[:1 + can_merge]:
        model = model.merge_and_unload().double() if form == "merged" else model
        logits, out, ids = model(**batch), model.generate(**batch, max_new_tokens=6), batch
        for _ in range(6):
            new = model(**ids)[:, -1].argmax(-1, keepdim=True)
            ids = {key: torch.cat([t, new if key == "input_ids" else torch.ones_like(new)], dim=1)
                   for key, t in ids.items()}
        assert torch.equal(out, ids["input_ids"])
        for row, of_row, said in zip(UNEQUAL, logits, out):
            alone = torch.tensor([row])
            torch.testing.assert_close(of_row[-len(row):], model(alone)[0], rtol=0, atol=1e-12)
            assert torch.equal(said[-len(row) - 6:], model.generate(alone, 6)[0])


def test_gradients_of_a_padded_batch_are_the_sums_of_its_rows(case):
    base, config, *_ = case
    model, batch = stirred_in_float64(base, config), pad_left(UNEQUAL)
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradients(loss):
        return torch.autograd.grad(loss, trained)

    together = gradients(model(**batch)[batch["attention_mask"].bool()].square().sum())
    alone = zip(*(gradients(model(torch.tensor([row])).square().sum()) for row in UNEQUAL))
    for gradient, of_rows in zip(together, alone):
        assert gradient.isfinite().all() and gradient.count_nonzero()
        torch.testing.assert_close(gradient, sum(of_rows), rtol=1e-9, atol=1e-9)


def test_gradients_agree_with_finite_differences_in_float64(case, ids):
    base, config, *_ = case
    peft_model = stirred_in_float64(base, config)       # from B = 0 half of the gradients vanish
    parameter = [p for p in peft_model.parameters() if p.requires_grad][-1]
    direction = torch.randn_like(parameter)

    def along(step):
        moved = (parameter + step * direction).detach()
        return torch.func.functional_call(
            peft_model, {name: moved for name, p in peft_model.named_parameters()
                         if p is parameter}, ids[:1, :3]).square().sum()

    value = peft_model(ids[:1, :3]).square().sum()
    (gradient,) = torch.autograd.grad(value, parameter)
    with torch.no_grad():
        numeric = (along(1e-5) - along(-1e-5)) / 2e-5
    # central differences: error about step^2 times the third derivative, and 1e-16 / step of noise
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


def test_adapting_twice_is_refused_and_changes_nothing(case, ids):
    base, config, *_ = case
    peft_model = get_peft_model(base, config)
    before = snapshot(peft_model)
    for model in (base, peft_model):
        with pytest.raises(ValueError, match="carries adapters already"):
            get_peft_model(model, config)
    assert same(snapshot(peft_model), before)


def test_waiting_adapters_follow_to_and_stand_once_in_the_state_dict(case):
    base, config, *_ = case
    peft_model = get_peft_model(base, config)
    alone = len(peft_model.state_dict())
    peft_model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
    assert len(peft_model.state_dict()) == alone + 2 * L
    peft_model.to(torch.float64)
    peft_model.set_adapter("second")
    assert {p.dtype for p in peft_model.parameters()} == {torch.float64}


def test_lora_adds_alpha_over_r_times_B_A_x_to_what_the_base_gives():
    """By hand, of x = (1, 1): W0 x = (1, 1), A x = (3, 1), B A x = (9, 13), alpha / r = 5."""
    base = nn.Sequential(nn.Linear(2, 2, bias=False))
    base[0].weight.data = torch.eye(2)
    layer = get_peft_model(base, LoraConfig(2, lora_alpha=10, target_modules=["0"])).base_model[0]
    layer.lora_A.weight.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    layer.lora_B.weight.data = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    assert layer(torch.ones(2)).tolist() == [46, 66]


@pytest.mark.parametrize("n_rows, dtype", [(100, torch.bfloat16), (5, torch.float32)])
def test_over_a_bfloat16_base_lora_multiplies_many_rows_in_bfloat16_and_learns_in_float32(n_rows,
                                                                                         dtype):
    base = nn.Sequential(nn.Linear(64, 32, bias=False)).bfloat16()
    layer = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["0"])).base_model[0]
    nn.init.normal_(layer.lora_B.weight)
    kept, x = [], torch.randn(n_rows, 64).bfloat16()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    W, A, B = (linear.weight.detach().to(dtype).double()
               for linear in (layer.base_layer, layer.lora_A, layer.lora_B))
    low = (x.double() @ A.T).to(dtype).double()
    # bfloat16 keeps 8 bits: W x and the sum are rounded by at most 2^-9 of their size each
    torch.testing.assert_close(y.double(), x.double() @ W.T + 2 * low @ B.T, rtol=0,
                               atol=2 ** -8 * y.abs().max().item())
    assert {t.dtype for t in kept} == {dtype} and y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in layer.parameters()
               if p.requires_grad)
