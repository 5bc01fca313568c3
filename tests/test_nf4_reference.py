"""The specification against golden bytes of bitsandbytes, loops, and tables from its source."""
import base64
import json

import pytest
import torch
from golden.make_nf4 import FILE, golden_weight

from minipeft.nf4 import (E2M1_CODE, FP4_CODE, INT4_CODE, NF4_CODE, QuantState, dequantize_nf4,
                          quantize_nf4)
from minipeft.nf4.reference import DYNAMIC_CODE, midpoints

EXACT = dict(rtol=0, atol=0)
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


def decoded(text: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).view(dtype)


def codes_of(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], dim=1).flatten()


def test_the_derived_code_is_the_table_typed_into_bitsandbytes():
    table = [-1, -.6961928009986877, -.5250730514526367, -.39491748809814453, -.28444138169288635,
             -.18477343022823334, -.09105003625154495, 0, .07958029955625534, .16093020141124725,
             .24611230194568634, .33791524171829224, .44070982933044434, .5626170039176941,
             .7229568362236023, 1]
    torch.testing.assert_close(NF4_CODE, torch.tensor(table), **EXACT)


def test_the_thresholds_are_the_constants_of_bitsandbytes_cuda_kernel():
    typed = torch.tensor([.03979014977812767, .3893125355243683])       # kernels.cu, its first two
    assert {midpoints(NF4_CODE)[7].item(), midpoints(NF4_CODE)[11].item()} == set(typed.tolist())


def test_the_other_codes_are_their_formats():
    assert (INT4_CODE * 7).round().tolist() == list(range(-8, 8))
    assert (FP4_CODE * 12)[8:].tolist() == [0, .0625, 2, 3, 4, 6, 8, 12]
    assert (E2M1_CODE * 6)[8:].tolist() == [0, .5, 1, 1.5, 2, 3, 4, 6]
    assert all(torch.equal(code, -code.flip(0)) for code in (FP4_CODE, E2M1_CODE))


def test_the_dynamic_map_has_the_known_landmarks():
    assert DYNAMIC_CODE.shape == (256,) and len(set(DYNAMIC_CODE.tolist())) == 256
    assert DYNAMIC_CODE[127] == 0 and DYNAMIC_CODE[255] == 1
    assert DYNAMIC_CODE[0].item() == pytest.approx(-.99296874, abs=1e-8)    # -1 is not in it
    assert DYNAMIC_CODE[128].item() == pytest.approx(5.5e-7, rel=1e-6)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['dtype']}-{c['blocksize']}")
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bytes_are_those_stored_from_bitsandbytes(case, backend):
    weight = golden_weight(getattr(torch, case["dtype"]))
    arguments = dict(blocksize=case["blocksize"], nested_search="table", backend=backend)
    packed, plain = quantize_nf4(weight, **arguments)
    _, nested = quantize_nf4(weight, compress_statistics=True, **arguments)
    assert torch.equal(packed.view(-1), decoded(case["packed"], torch.uint8))
    assert torch.equal(plain.absmax, decoded(case["absmax"], torch.float32))
    first = dequantize_nf4(packed, plain, backend=backend).flatten()[:8]
    assert first.tolist() == case["first_weights"]
    # mean() of 260 float32: torch may sum in another order on another processor
    assert nested.offset.item() == pytest.approx(case["offset"], rel=1e-6)
    if nested.offset.item() == case["offset"]:
        assert torch.equal(nested.absmax, decoded(case["absmax8"], torch.uint8))
        assert torch.equal(nested.state2.absmax, decoded(case["absmax2"], torch.float32))


VECTORS = {
    "a line": (torch.linspace(-1, 1, 128), "0000000000111111111111111222222222233333334444444555555"
               "6666667777778888899999aaaaaabbbbbbcccccccdddddddddeeeeeeeeeeeeeefffffffff"),
    "integers": (torch.arange(-32., 32.),
                 "000001111111122222333344455566677788999aaabbbccccddddeeeeeeeffff"),
    "the code itself": (torch.cat([NF4_CODE, torch.zeros(48)]), "0123456789abcdef" + "7" * 48),
    "an odd number": (torch.tensor([1., -1, 0, .5, 0, 0, 0]), "f07c7777"),
    "zeros": (torch.zeros(64), "7" * 64),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_known_vectors_have_their_bytes(name, backend):
    weight, expected = VECTORS[name]
    packed, _ = quantize_nf4(weight, backend=backend)
    assert bytes(packed.view(-1).tolist()).hex() == expected


def test_the_8_bit_codes_of_a_known_vector_are_bitsandbytes_cpu_codes():
    weight = (torch.arange(512) - 100) / 64
    _, state = quantize_nf4(weight, compress_statistics=True, nested_search="table")
    assert state.absmax.tolist() == [34, 12, 31, 53, 179, 210, 232, 255]
    assert (state.state2.absmax.item(), state.offset.item()) == (3.21484375, 3.20703125)


@pytest.mark.parametrize("search", ["table", "nearest"])
def test_blocks_of_one_size_get_8_bit_code_0_and_come_back_exactly(search):
    weight = torch.full((3, 64), 0.25)      # absmax - mean is 0, which bitsandbytes codes as 0
    packed, state = quantize_nf4(weight, compress_statistics=True, nested_search=search)
    assert state.absmax.tolist() == [0, 0, 0] and state.state2.absmax == 0
    torch.testing.assert_close(dequantize_nf4(packed, state), weight, **EXACT)


def test_the_two_8_bit_searches_part_where_values_are_tiny():
    absmax = torch.tensor([1.0, 0.5, 0.5 + 1e-6, 0.0])      # minus the mean: .5, 0, 7.5e-7, -.5
    weight = (absmax[:, None] * torch.ones(64)).flatten()
    table, nearest = (quantize_nf4(weight, compress_statistics=True, nested_search=rule)[1].absmax
                      for rule in ("table", "nearest"))
    assert table[0] == nearest[0] and table[3] == nearest[3]
    assert DYNAMIC_CODE[table[1].int()].abs() == pytest.approx(2.125e-5)      # the least bin
    assert DYNAMIC_CODE[nearest[1].int()].abs() < 1e-6      # its neighbours are 0 and 5.5e-7


def test_quantizing_is_the_equation_written_with_loops():
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))    # blocks cross rows
    packed, state = quantize_nf4(weight, blocksize=32, backend="reference")
    codes, flat, thresholds = codes_of(packed), weight.flatten(), midpoints(NF4_CODE)
    for start in range(0, 150, 32):
        block = flat[start:start + 32]
        absmax = max(abs(w) for w in block)
        assert state.absmax[start // 32] == absmax
        for i, w in enumerate(block):
            assert codes[start + i] == sum(bool(w * (1 / absmax) > t) for t in thresholds)


@pytest.mark.parametrize("k", range(15))
def test_a_tie_goes_to_the_lower_code(k):
    weight = torch.zeros(64)
    weight[0], weight[1] = 1, midpoints(NF4_CODE)[k]
    weight[2] = torch.nextafter(weight[1], torch.tensor(2.0))
    packed, _ = quantize_nf4(weight)
    assert codes_of(packed)[1:3].tolist() == [k, k + 1]


def test_double_quantization_rebuilds_a_small_block_with_a_huge_error():
    """8 bits serve 256 absmax of one scale; one much smaller than the rest is below their step.

    Without double quantization no weight is further off than half a step of its own block.
    """
    weight = torch.ones(256 * 64)
    weight[:64] = 1e-4
    for i in range(1, 256):
        weight[64 * i:64 * (i + 1)] *= 1 + i / 256
    half_step = (NF4_CODE[1:] - NF4_CODE[:-1]).max() / 2
    plain = dequantize_nf4(*quantize_nf4(weight))
    nested = dequantize_nf4(*quantize_nf4(weight, compress_statistics=True))
    assert ((plain - weight).abs()[:64] <= half_step * 1e-4).all()
    assert ((nested - weight).abs()[:64] > 10 * 1e-4).all()


def test_nf4_beats_int4_and_fp4_on_normal_weights():
    """Mean squared errors on N(0, 1) at blocksize 64: .0085, .0116, .0149, all within 2 %."""
    weight = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    errors = [((dequantize_nf4(*quantize_nf4(weight, code=code)) - weight) ** 2).mean().item()
              for code in (NF4_CODE, INT4_CODE, FP4_CODE)]
    assert errors == pytest.approx([.00845, .01159, .01487], rel=.02)   # 4.2 M other samples


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_state_survives_its_dictionary(nested, packed):
    codes, state = quantize_nf4(torch.randn(8, 100).bfloat16(), compress_statistics=nested)
    again = QuantState.from_dict(state.as_dict(packed=packed))
    assert again.shape == (8, 100) and again.dtype == torch.bfloat16 and again.nested == nested
    assert torch.equal(dequantize_nf4(codes, again), dequantize_nf4(codes, state))


def test_the_packed_dictionary_has_bitsandbytes_keys_and_json():
    _, state = quantize_nf4(torch.randn(64, 128), compress_statistics=True)
    entries = state.as_dict(packed=True)
    text = bytes(entries.pop("quant_state.bitsandbytes__nf4").tolist()).decode()
    assert set(entries) == {"absmax", "quant_map", "nested_absmax", "nested_quant_map"}
    offset = state.offset.item()
    assert text == ('{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", '
                    '"shape": [64, 128], "nested_blocksize": 256, "nested_dtype": "float32", '
                    f'"nested_offset": {offset}}}')
