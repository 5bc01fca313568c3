"""NF4Linear against nn.Linear over the dequantized weight, and quantize_model."""
import copy
import functools
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SMALL

from minipeft import GPT, LoraConfig, get_peft_model
from minipeft.adapter import Adapter
from minipeft.files import read_tensors, save_tensors
from minipeft.nf4 import (NF4Linear, QuantState, cpu, dequantize_nf4, dispatch, quantize_model,
                          quantize_nf4)
from minipeft.nf4.state import PACKED_KEY

EXACT = dict(rtol=0, atol=0)


def linear_and_nf4(in_features=128, out_features=96, bias=True, **options):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias)
    return linear, NF4Linear.from_linear(linear, **options)


@pytest.mark.parametrize("nested", [False, True])
def test_forward_and_gradient_are_those_of_the_dequantized_weight(nested):
    linear, layer = linear_and_nf4(double_quant=nested)
    weight = dequantize_nf4(*quantize_nf4(linear.weight, compress_statistics=nested))
    ours = torch.randn(4, 3, 128, requires_grad=True)
    plain = ours.detach().clone().requires_grad_()
    y, expected = layer(ours), F.linear(plain, weight, layer.bias)
    # sums of 128 terms of size 1 in another order, and of 96 terms of size 10
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.square().sum().backward(), expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("in_features, out_features", [(32, 5), (64, 3), (7, 11), (1, 1)])
def test_gradients_pass_gradcheck_with_float64_activations(in_features, out_features, monkeypatch):
    monkeypatch.setattr(cpu, "TILE", 20)
    _, layer = linear_and_nf4(in_features, out_features)
    layer.bias = nn.Parameter(layer.bias.detach().double())
    x = torch.randn(3, in_features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: layer(x), (x, layer.bias))


def test_a_second_derivative_is_refused_not_wrong():
    _, layer = linear_and_nf4(64, 8)
    x = torch.randn(2, 64, requires_grad=True)
    grad, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_backward_saves_codes_not_weights():
    _, layer = linear_and_nf4(256, 256, bias=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(2, 256, requires_grad=True))
    assert [t.data_ptr() for t in saved] == [layer.packed.data_ptr()]      # 0 further bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_dtype_of_the_activations(dtype):
    _, layer = linear_and_nf4()
    assert layer(torch.randn(2, 128, dtype=dtype)).dtype == dtype
    assert layer(torch.randn(1, 128, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("bias", [False, True])
def test_one_row_without_gradients_is_the_same_product(bias):
    _, layer = linear_and_nf4(bias=bias)
    x = torch.randn(1, 1, 128)
    with torch.no_grad():
        y = layer(x)
    assert y.shape == (1, 1, 96)
    # 128 terms of size 1 in float32, summed in another order
    torch.testing.assert_close(y, F.linear(x, layer.dequantize(), layer.bias), rtol=0, atol=1e-5)


def test_a_row_of_the_wrong_width_is_refused():
    _, layer = linear_and_nf4(128, 8)
    for shape in ((2, 64), (128, 1), (64,), ()):
        with pytest.raises(ValueError, match="x must be floating point, .*128"):
            layer(torch.randn(shape))
    with pytest.raises(ValueError, match="int64"):
        layer(torch.ones(2, 128, dtype=torch.int64))


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
@pytest.mark.parametrize("nested", [False, True])
def test_casting_the_module_leaves_the_statistics_alone(cast, nested):
    _, layer = linear_and_nf4(double_quant=nested)
    before = layer.dequantize()
    getattr(layer, cast)()
    torch.testing.assert_close(layer.dequantize(), before, **EXACT)
    assert layer.bias.dtype == getattr(torch.zeros(1), cast)().dtype


@pytest.mark.parametrize("nested", [False, True])
def test_state_dict_and_deepcopy_keep_every_bit(nested):
    _, layer = linear_and_nf4(double_quant=nested)
    fresh = NF4Linear(128, 96, double_quant=nested)
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer)):
        torch.testing.assert_close(other.dequantize(), layer.dequantize(), **EXACT)
        torch.testing.assert_close(other.bias, layer.bias, **EXACT)


def moved(layer, other):
    layer.to("meta").to_empty(device="cpu")
    layer.load_state_dict(other.state_dict())
    return layer


def swapped(layer, other):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.load_state_dict(other.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    return layer


def sliced(layer, other):
    """As from one file that holds both: all of their bytes are parts of one storage."""
    both = {name: torch.stack([t, other.state_dict()[name]])
            for name, t in layer.state_dict().items()}
    for i in (0, 1):
        layer.load_state_dict({name: t[i] for name, t in both.items()}, assign=True)
        layer(torch.randn(1, 128))
    return layer


def by_data(layer, other):
    for mine, its in zip([*layer.buffers(), layer.bias], [*other.buffers(), other.bias]):
        mine.data = its
    return layer


def filled(layer, other):
    layer.fill(other.packed, other.quant_state)
    layer.bias = other.bias
    return layer


def loaded(layer, other, **how):
    layer.load_state_dict(other.state_dict(), **how)
    return layer


WAYS_TO_OTHER_CODES = {
    "loaded": loaded, "loaded, the tensors taken over": functools.partial(loaded, assign=True),
    "loaded, the tensors swapped": swapped, "filled": filled, "sliced": sliced,
    "moved": moved, "by data": by_data,
    "a copy, loaded": lambda layer, other: loaded(copy.deepcopy(layer), other),
    "unpickled, loaded": lambda layer, other: loaded(pickle.loads(pickle.dumps(layer)), other),
    "in shared memory, loaded": lambda layer, other: loaded(layer.share_memory(), other),
    "called with": lambda layer, other: lambda x: torch.func.functional_call(
        layer, dict(other.named_buffers()) | dict(other.named_parameters()), (x,))}


@pytest.mark.parametrize("way", WAYS_TO_OTHER_CODES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_has_other_codes_computes_with_them(way, nested):
    """Whatever it has kept from its first call."""
    layer, other = (NF4Linear.from_linear(nn.Linear(128, 96), double_quant=nested)
                    for _ in range(2))
    x = torch.randn(1, 128)
    before, expected = layer(x), other(x)
    if way.startswith(("a copy", "unpickled")):
        same = WAYS_TO_OTHER_CODES[way](layer, copy.deepcopy(layer))
        torch.testing.assert_close(same(x), before, **EXACT)
    layer_now = WAYS_TO_OTHER_CODES[way](layer, other)
    torch.testing.assert_close(layer_now(x), expected, **EXACT)
    torch.testing.assert_close(other(x), expected, **EXACT)
    assert not torch.equal(before, expected)
    if layer_now is not layer:
        torch.testing.assert_close(layer(x), before, **EXACT)


def test_the_state_is_made_once_for_the_same_buffers_and_follows_their_bytes():
    _, layer = linear_and_nf4()
    state, before = layer.quant_state, layer.dequantize()
    for part in (layer.absmax2, layer.offset):
        part.zero_()                             # absmax = code2[q8] * absmax2 + offset
    assert layer.quant_state is state
    assert before.any() and not layer.dequantize().any()


def test_nothing_in_it_is_trainable_and_the_linear_is_left_alone():
    linear, layer = linear_and_nf4()
    assert not any(p.requires_grad for p in layer.parameters())
    assert linear.weight.requires_grad and linear.bias.requires_grad


@pytest.mark.parametrize("nested, bytes_a_weight", [(False, 0.5625), (True, 0.51587)])
def test_bytes_a_weight_are_counted_on_the_meta_device(nested, bytes_a_weight):
    with torch.device("meta"):
        linear = nn.Linear(4096, 11008, bias=False)
    layer = NF4Linear.from_linear(linear, double_quant=nested)
    counted = sum(buffer.nbytes for buffer in layer.buffers()) / (4096 * 11008)
    assert counted == pytest.approx(bytes_a_weight, abs=5e-6)       # given to five digits
    assert layer(torch.empty(2, 7, 4096, device="meta")).shape == (2, 7, 11008)


def test_an_unknown_quant_type_is_refused():
    with pytest.raises(ValueError, match="'nf5'.*|.*nf4.*'nf5'"):
        NF4Linear(64, 64, quant_type="nf5")


def nested_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "block": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 96, bias=False)),
        "up_proj": nn.Linear(64, 64), "gate_up_proj": nn.Linear(64, 64),
        "lm_head": nn.Linear(64, 9)})


def kinds(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules()
            if isinstance(module, (nn.Linear, NF4Linear))}


def test_quantize_model_replaces_every_linear_but_the_head():
    model = nested_model()
    weight = model["block"][0].weight.detach().clone()
    assert quantize_model(model) is model
    assert kinds(model) == {"block.0": NF4Linear, "block.2": NF4Linear, "up_proj": NF4Linear,
                            "gate_up_proj": NF4Linear, "lm_head": nn.Linear}
    expected = dequantize_nf4(*quantize_nf4(weight, compress_statistics=True))
    torch.testing.assert_close(model["block"][0].dequantize(), expected, **EXACT)


def test_skip_matches_whole_dotted_suffixes():
    model = quantize_model(nested_model(), skip=["up_proj", "block.2"])
    kept = {path for path, kind in kinds(model).items() if kind is nn.Linear}
    assert kept == {"up_proj", "block.2"}


def test_a_linear_at_two_paths_stays_one_module():
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})
    model["b"] = model["a"]
    quantize_model(model)
    assert model["a"] is model["b"] and isinstance(model["a"], NF4Linear)


def spoiled(path: str, change) -> nn.Module:
    model = nested_model()
    change(model.get_submodule(path).weight)
    return model


@pytest.mark.parametrize("error, message, make, arguments", [
    (ValueError, "48", nested_model, dict(blocksize=48)),
    (TypeError, "string 'up_proj'", nested_model, dict(skip="up_proj")),
    (ValueError, "'u_proj' matches no", nested_model, dict(skip=["u_proj"])),
    (ValueError, "gate_up_proj.*finite", functools.partial(
        spoiled, "gate_up_proj", lambda w: w.data[3].fill_(float("inf"))), {}),
    (TypeError, "block.2.*float64", functools.partial(
        spoiled, "block.2", lambda w: setattr(w, "data", w.data.double())), {}),
    (ValueError, "with none", lambda: nn.ModuleDict({"lm_head": nn.Linear(64, 9)}), {}),
    (ValueError, "single layer", lambda: nn.Linear(64, 64), {}),
    (ValueError, "with none", lambda: quantize_model(nested_model()), {}),
])
def test_a_refused_model_is_as_it_was(error, message, make, arguments):
    model = make()
    before = {path: id(module) for path, module in model.named_modules()}
    with pytest.raises(error, match=message):
        quantize_model(model, **arguments)
    assert before == {path: id(module) for path, module in model.named_modules()}


def test_a_model_with_adapters_is_refused():
    with pytest.raises(ValueError, match="first, then get_peft_model"):
        quantize_model(nn.Sequential(Adapter(nn.Linear(64, 64))))


def test_a_single_row_that_needs_a_gradient_gets_it():
    layer = NF4Linear.from_linear(torch.nn.Linear(64, 32, bias=False))
    x = torch.randn(1, 64, requires_grad=True)
    layer(x).sum().backward()
    # the gradient of the sum of W x is the sum of W's rows, added up in another order: some ulp
    torch.testing.assert_close(x.grad[0], layer.dequantize().sum(0), rtol=1e-5, atol=1e-6)


# What users of nn.Linear read, and torch.compile


def test_the_weight_is_the_dequantized_one_and_no_part_of_the_state():
    linear, layer = linear_and_nf4()
    expected = dequantize_nf4(*quantize_nf4(linear.weight, compress_statistics=True))
    torch.testing.assert_close(layer.weight, expected, **EXACT)
    assert layer.weight.dtype == torch.float32 and layer.bfloat16().weight.dtype == torch.float32
    assert "weight" not in layer.state_dict() and "weight" not in dict(layer.named_parameters())


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("nested, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_a_compiled_layer_is_one_graph_and_computes_the_same(nested, dtype, compiled):
    _, layer = linear_and_nf4(double_quant=nested)
    whole = compiled(layer)
    x = torch.randn(4, 128, dtype=dtype)
    twins = [x.clone().requires_grad_() for _ in range(2)]
    for call, twin in zip((whole, layer), twins):
        call(twin).square().sum().backward()
    torch.testing.assert_close(whole(x), layer(x), **EXACT)
    torch.testing.assert_close(twins[0].grad, twins[1].grad, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(whole(x[:1]), layer(x[:1]), **EXACT)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiled_qlora_model_is_one_graph_whatever_its_layers(model, ids, compiled):
    peft_model = get_peft_model(quantize_model(model), LoraConfig(r=2, target_modules="all-linear"))
    expected = peft_model(ids)
    whole = compiled(peft_model)
    torch.testing.assert_close(whole(ids), expected, **EXACT)
    whole(ids).square().sum().backward()
    assert all(p.grad is not None for p in peft_model.parameters() if p.requires_grad)


@pytest.mark.parametrize("nested", [False, True])
def test_the_operators_in_a_graph_keep_torchs_rules(nested):
    """As torch.library.opcheck knows them: no aliases, no mutation, true shapes and dtypes."""
    _, layer = linear_and_nf4(double_quant=nested)
    arguments = layer.packed, *dispatch.pieces(layer.quant_state)
    torch.library.opcheck(dispatch.dequantize_in_graph, (*arguments, torch.bfloat16))
    torch.library.opcheck(dispatch.linear_in_graph, (*arguments, torch.randn(2, 3, 128)))
    torch.library.opcheck(dispatch.linear_backward_in_graph, (*arguments, torch.randn(5, 96)))


@pytest.mark.parametrize("other", [dict(quant_type="int4"), dict(blocksize=128),
                                   dict(double_quant=False),
                                   dict(in_features=32, out_features=128)])
def test_a_state_whose_codes_mean_something_else_is_refused(other):
    """4,096 weights each, so that bytes of the same number would load."""
    made = dict(in_features=64, out_features=64, bias=False, quant_type="nf4") | other
    state = NF4Linear(**made).state_dict()
    layer = NF4Linear(64, 64, bias=False)
    if made["in_features"] == 64 and set(other) == {"quant_type"}:
        assert {k: t.shape for k, t in state.items()} == {
            k: t.shape for k, t in layer.state_dict().items()} | {
            "_extra_state": state["_extra_state"].shape}
    with pytest.raises((ValueError, RuntimeError), match="says .* and the layer is|size mismatch"):
        layer.load_state_dict(state)


def test_a_state_that_does_not_say_what_its_codes_mean_is_refused():
    state = NF4Linear(64, 64).state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match="Missing key.*_extra_state"):
        NF4Linear(64, 64).load_state_dict(state)
    for damage in (b"", b"{", b"[1]", b"[" * 9999, b"\xff"):
        state["_extra_state"] = torch.tensor(list(damage), dtype=torch.uint8)
        with pytest.raises(ValueError, match="state of an NF4Linear (is not valid|must hold)"):
            NF4Linear(64, 64).load_state_dict(state)


def test_the_state_of_a_quantized_model_goes_through_a_safetensors_file(tmp_path, model):
    quantize_model(model)
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), {})
    torch.manual_seed(1)
    other = quantize_model(GPT(SMALL))
    other.load_state_dict(read_tensors(tmp_path / "a.safetensors")[0])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def packed_with(**changes):
    _, state = quantize_nf4(torch.randn(64, 64), compress_statistics=True)
    entries = state.as_dict(packed=True)
    text = json.loads(bytes(entries[PACKED_KEY].tolist())) | changes
    entries[PACKED_KEY] = torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8)
    return entries


@pytest.mark.parametrize("name", ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize",
                                  "nested_dtype", "nested_offset"])
@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 0, True, 2**62, [-1, 4], ["a"],
                                   [2**40] * 2])
def test_a_quant_state_of_wrong_values_is_a_value_error(name, value):
    if (name, value) in [("nested_offset", -1), ("nested_offset", 0), ("nested_offset", 2**62),
                         ("nested_offset", True), ("quant_type", "x")]:
        return                                       # a number is a number, a name a name
    with pytest.raises(ValueError):
        QuantState.from_dict(packed_with(**{name: value}))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 9999, b"\xff", b'{"a": 1, "a": 1}'])
def test_packed_bytes_that_are_no_object_are_a_value_error(content):
    entries = packed_with() | {PACKED_KEY: torch.tensor(list(content), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=PACKED_KEY):
        QuantState.from_dict(entries)
    for other in (packed_with() | {PACKED_KEY: "{}"}, packed_with() | {"absmax": [1.0]},
                  packed_with() | {"quant_map": None}):
        with pytest.raises(ValueError, match="must be a"):
            QuantState.from_dict(other)
