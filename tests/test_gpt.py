"""The GPT's own facts. Its equality with transformers' Llama is in tests/parity/."""
import math
import subprocess
import sys

import pytest
import torch
from conftest import SMALL, UNEQUAL

from minipeft import GPT, GPTConfig
from minipeft.gpt import KVCache, RopeScaling, pad_left, rope_table, seen

PARAMETERS = {    # published counts of the models
    "llama-7b": 6_738_415_616, "llama-2-7b": 6_738_415_616, "llama-13b": 13_015_864_320,
    "llama-2-13b": 13_015_864_320, "llama-33b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("preset", PARAMETERS)
def test_presets_have_exactly_the_published_parameter_counts(preset):
    with torch.device("meta"):
        model = GPT(GPTConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[preset]


# The Llama family beyond Llama: sizes of published models, and their published counts
QKV = ("q_proj", "k_proj", "v_proj")
FAMILY = {
    "Llama 3.2 1B": (dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192,
                          num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                          tie_word_embeddings=True), 1_235_814_400),
    "Mistral Nemo": (dict(vocab_size=131072, hidden_size=5120, intermediate_size=14336,
                          num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=8,
                          head_dim=128), 12_247_782_400),
    "Qwen2.5 0.5B": (dict(vocab_size=151936, hidden_size=896, intermediate_size=4864,
                          num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                          tie_word_embeddings=True, biases=QKV), 494_032_768),
    "Qwen2.5 7B": (dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                        biases=QKV), 7_615_616_512),
    "Qwen3 0.6B": (dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072,
                        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                        head_dim=128, qk_norm=True, tie_word_embeddings=True), 596_049_920),
}


@pytest.mark.parametrize("name", FAMILY)
def test_other_models_of_the_family_have_the_published_parameter_counts(name):
    sizes, parameters = FAMILY[name]
    with torch.device("meta"):
        model = GPT(GPTConfig(**sizes))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_tiny_preset_has_the_count_by_hand():
    V, C, F, L = 400, 128, 384, 4
    by_hand = 2 * V * C + C + L * (4 * C * C + 3 * C * F + 2 * C)
    assert sum(p.numel() for p in GPT(GPTConfig.preset("tiny")).parameters()) == by_hand


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'llama-9b'; known: tiny, .*llama-3-70b"):
        GPTConfig.preset("llama-9b")


@pytest.mark.parametrize("change, message", [
    ({"num_attention_heads": 5}, "even multiple of num_attention_heads 5"),
    ({"hidden_size": 36, "num_attention_heads": 4}, "rotary positions turn pairs"),
    ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
    ({"head_dim": 7}, "head_dim must be even"), ({"head_dim": 0}, "head_dim must be a whole num"),
    ({"biases": ("q",)}, "biases must be a tuple of names among q_proj, k_proj, v_proj, o_proj"),
    ({"biases": ["q_proj"]}, "biases must be a tuple"), ({"qk_norm": 1}, "qk_norm must be True or"),
])
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**vars(SMALL), "head_dim": None, **change})


def test_a_head_of_its_own_size_biases_and_norms_are_the_formula_by_loops():
    """Three positions, one head of four on a width of two: everything a sum of products."""
    torch.manual_seed(0)
    config = GPTConfig(7, 2, 3, 1, 1, head_dim=4, biases=(*QKV, "o_proj"), qk_norm=True)
    attention = GPT(config).model.layers[0].self_attn.double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    x = torch.randn(3, 2, dtype=torch.float64)

    def projected(layer, t):
        return [sum(layer.weight[i, j] * x[t, j] for j in range(2)) + layer.bias[i]
                for i in range(4)]

    def normed_and_turned(values, norm, t):
        rms = (sum(v * v for v in values) / 4 + 1e-6) ** 0.5
        n, out = [norm.weight[i] * v / rms for i, v in enumerate(values)], [0] * 4
        for i in range(2):
            angle = torch.tensor(t / 10000 ** (2 * i / 4), dtype=torch.float32)
            c, s = angle.cos().double(), angle.sin().double()
            out[i], out[i + 2] = n[i] * c - n[i + 2] * s, n[i + 2] * c + n[i] * s
        return out

    q, k = ([normed_and_turned(projected(p, t), norm, t) for t in range(3)] for p, norm in
            ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm)))
    v, y = [projected(attention.v_proj, t) for t in range(3)], attention(x[None])[0]
    for t in range(3):
        weights = [(sum(a * b for a, b in zip(q[t], k[s])) / 2).exp() for s in range(t + 1)]
        seen = [sum(w * v[s][i] for s, w in enumerate(weights)) / sum(weights) for i in range(4)]
        o = attention.o_proj
        by_hand = torch.stack([sum(o.weight[i, j] * seen[j] for j in range(4)) + o.bias[i]
                               for i in range(2)])
        torch.testing.assert_close(y[t], by_hand, rtol=1e-12, atol=1e-12)      # float64


def test_scaled_positions_are_what_llama_3_1s_description_says():
    """By pair: how many tokens one turn takes decides; and linear scaling divides all alike."""
    D, theta, factor, low, high, original = 16, 500.0, 8.0, 1.0, 4.0, 64
    scaling = RopeScaling("llama3", factor, low, high, original)
    device, kinds = torch.device("cpu"), set()
    cos, sin = rope_table(D, 90, theta, device, scaling)
    linear = rope_table(D, 90, theta, device, RopeScaling("linear", 2.0))
    for i in range(D // 2):
        frequency = theta ** (-2 * i / D)
        wavelength, scaled = 2 * math.pi / frequency, frequency
        if wavelength > original / low:
            scaled, kind = frequency / factor, "slow"
        elif wavelength >= original / high:
            smooth = (original / wavelength - low) / (high - low)
            scaled, kind = (1 - smooth) * frequency / factor + smooth * frequency, "between"
        else:
            kind = "fast"
        kinds.add(kind)
        for position in (0, 1, 63, 89):       # float32: 89 radians have steps of 8e-6
            assert cos[position, i].item() == pytest.approx(math.cos(position * scaled), abs=2e-5)
            assert sin[position, i + D // 2].item() == pytest.approx(
                math.sin(position * scaled), abs=2e-5)
            assert linear[0][position, i].item() == pytest.approx(
                math.cos(position * frequency / 2), abs=2e-5)
    assert kinds == {"slow", "between", "fast"}


def test_attention_is_the_formula_by_loops(model, ids):
    attention = model.model.layers[0].self_attn.double()
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    q, k, v = (proj(x)[0].view(5, -1, 8) for proj in
               (attention.q_proj, attention.k_proj, attention.v_proj))       # (T, heads, D)

    def turned(vector, position):
        out = vector.clone()
        for i in range(4):
            angle = torch.tensor(position / 10000 ** (2 * i / 8), dtype=torch.float32)
            c, s = angle.cos().double(), angle.sin().double()
            out[i] = vector[i] * c - vector[i + 4] * s
            out[i + 4] = vector[i + 4] * c + vector[i] * s
        return out

    expected = torch.zeros(5, 4, 8, dtype=torch.float64)
    for t in range(5):
        for head in range(4):
            shared = head // 2                                   # two query heads a key head
            scores = torch.stack([turned(q[t, head], t) @ turned(k[s, shared], s) / 8 ** 0.5
                                  for s in range(t + 1)])        # causal: the past only
            expected[t, head] = scores.softmax(0) @ v[:t + 1, shared]
    expected = attention.o_proj(expected.view(5, 32))
    # angles are float32: position * frequency is rounded at 1e-7
    torch.testing.assert_close(attention(x)[0], expected, rtol=0, atol=1e-6)


def test_generating_with_a_cache_equals_generating_without(model, ids):
    expected = ids
    for _ in range(20):
        expected = torch.cat([expected, model(expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(ids, 20), expected)


def test_rows_end_with_the_end_token_and_all_ended_stops_early(model, ids):
    free = model.generate(ids, 12)
    end = int(free[0, 9])                                        # what row 0 says third
    out = model.generate(ids, 12, eos_token_id=end)
    first = {row: (free[row, 7:] == end).nonzero() for row in range(3)}
    for row in range(3):
        stop = 7 + int(first[row][0]) if len(first[row]) else out.shape[1] - 1
        assert torch.equal(out[row, :stop + 1], free[row, :stop + 1])
        assert (out[row, stop + 1:] == end).all()
    assert model.generate(ids[:1], 12, eos_token_id=end).shape[1] == 7 + int(first[0][0]) + 1


def test_sampling_follows_the_temperature(model, ids):
    torch.manual_seed(3)
    likeliest = model.generate(ids, 8)
    assert torch.equal(model.generate(ids, 8, temperature=1e-6), likeliest)
    assert not torch.equal(model.generate(ids, 8, temperature=5.0), likeliest)


def test_logits_at_computes_the_head_on_those_positions_only(model, ids):
    mask = torch.rand(ids.shape) < 0.5
    # rows of a matmul of another height may be summed in another order: an ulp
    torch.testing.assert_close(model(ids, logits_at=mask), model(ids)[mask], rtol=1e-5, atol=1e-6)


def test_tied_weights_are_one_parameter_also_after_assigning(ids):
    model = GPT(GPTConfig(**{**vars(SMALL), "tie_word_embeddings": True}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("ids, message", [
    (torch.tensor([[0, 61]]), r"must lie in 0 ... 60, got 0 ... 61"),
    (torch.tensor([[-1, 3]]), r"got -1 ... 3"),
    (torch.tensor([0, 1]), r"\(B, T\) integer tensor"),
    (torch.zeros(1, 2), r"integer tensor, got torch.float32"),
    (torch.zeros(1, 0, dtype=torch.long), "non-empty"),
])
def test_bad_token_ids_are_refused(model, ids, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids, 2)


def test_a_sequence_longer_than_the_model_is_refused(model):
    with pytest.raises(ValueError, match="at most 64 positions .* got 65"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="at most 64 positions .* got 69"):
        model.generate(torch.zeros(1, 60, dtype=torch.long), 10)
    with pytest.raises(ValueError, match="max_new_tokens >= 1"):
        model.generate(torch.zeros(1, 6, dtype=torch.long), 0)


def test_the_table_of_positions_is_as_long_as_the_text_needs_not_as_the_config_allows():
    """A config may say a million positions; the numbers are those of the whole table."""
    device = torch.device("cpu")
    whole = rope_table(8, 2**14, 10000.0, device)
    for length in (1024, 2048):
        assert all(torch.equal(t, w[:length]) for t, w in
                   zip(rope_table(8, length, 10000.0, device), whole))
    rope_table.cache_clear()
    config = GPTConfig(40, 32, 48, 1, 4, max_position_embeddings=2**24)
    for T in (5, 1024, 1025):
        GPT(config)(torch.zeros(1, T, dtype=torch.long))
    for length in (1024, 2048):
        rope_table(8, length, 10000.0, device, None)
    assert rope_table.cache_info()[:2] == (3, 2)        # (found, made): no other length was made


def test_positions_survive_bfloat16_and_inference_mode(model, ids):
    rope_table.cache_clear()
    with torch.inference_mode():
        model(ids)
    model(ids).sum().backward()          # a table made in inference mode could not be used here
    cos, _ = rope_table(8, 64, 10000.0, torch.device("cpu"))
    assert model.bfloat16()(ids).dtype == torch.bfloat16 and cos.dtype == torch.float32


DENORMAL = """
import contextlib, torch
from minipeft.__main__ import main
from minipeft.lab.study import start_worker

def denormals():
    return int((torch.full((1000,), 1e-30) * 1e-10).count_nonzero())

print(denormals())
for start in (lambda: torch.set_flush_denormal(True), start_worker,
              lambda: main(["compare", "--seeds", "0"])):
    with contextlib.suppress(SystemExit):
        start()
    print(denormals())
    torch.set_flush_denormal(False)
    print(denormals())
"""


def test_denormals_are_flushed_where_a_process_starts():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    out = subprocess.run([sys.executable, "-c", DENORMAL], capture_output=True, text=True)
    assert out.stdout.split() == ["1000", *3 * ["0", "1000"]], out.stderr


def test_a_row_ends_at_the_first_of_several_end_tokens_and_is_filled_with_the_first(model, ids):
    """Beside a loop that decodes each row alone and cuts it."""
    free = model.generate(ids, 12)[:, ids.shape[1]:].tolist()
    ends = [free[0][3], free[1][5]]
    expected = []
    for row in free:
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        expected.append(row[:stop + 1] + [ends[0]] * (len(row) - stop - 1))
    longest = max(next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
                  for row in free)
    for given in (ends, tuple(ends), torch.tensor(ends)):
        out = model.generate(ids, 12, eos_token_id=given)[:, ids.shape[1]:].tolist()
        assert out == [row[:longest] for row in expected]
    one = model.generate(ids, 12, eos_token_id=ends[:1])
    assert torch.equal(one, model.generate(ids, 12, eos_token_id=ends[0]))


@pytest.mark.parametrize("given, message", [
    (61, "must lie in 0 ... 60, got 61"), (-1, "must lie in 0 ... 60"), ([2, 99], "got 2 ... 99"),
    ([], "must be a non-empty"), (2.5, "integer tensor")])
def test_end_tokens_that_the_model_does_not_have_are_refused(given, message, model, ids):
    with pytest.raises(ValueError, match=message):
        model.generate(ids, 2, eos_token_id=given)


@pytest.mark.parametrize("arguments", [
    dict(max_new_tokens=0), dict(max_new_tokens=2.5), dict(max_new_tokens=float("nan")),
    dict(max_new_tokens=2, temperature=float("nan")), dict(max_new_tokens=2, temperature=-1.0),
    dict(max_new_tokens=2, temperature=float("inf")), dict(max_new_tokens=2, temperature=1e-31)])
def test_impossible_sampling_is_refused(arguments, model, ids):
    with pytest.raises(ValueError, match="temperature"):
        model.generate(ids, **arguments)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30])
def test_logits_that_are_not_finite_are_an_error_and_no_answer(temperature, model, ids):
    assert model.generate(ids, 1, temperature).shape == (3, 8)
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.lm_head.weight[5] = value
        with pytest.raises(FloatingPointError, match="logits hold NaN or infinity"):
            model.generate(ids, 1, temperature)


def test_a_cache_for_every_layer_or_none(model, ids):
    with pytest.raises(ValueError, match="shorter"):
        model(ids, caches=[])
    with pytest.raises(ValueError, match="shorter"):
        model(ids, caches=[], attention_mask=torch.ones_like(ids))


# Rows of unequal lengths. Every method with them is in tests/test_methods.py

# float32 sums of up to 64 terms of size 1, in another order, over two layers
SUM_ORDER = 1e-5


def caches_of(model):
    return [KVCache() for _ in model.model.layers]


def test_rows_are_padded_on_the_left_and_the_mask_says_where():
    batch = pad_left([[5, 6, 7], torch.tensor([8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("rows", [[], [[1], []], [[1.5]], [torch.ones(2, 2, dtype=torch.long)]])
def test_what_is_no_row_of_token_ids_is_not_padded(rows):
    with pytest.raises(ValueError, match="pad_left wants rows of token ids"):
        pad_left(rows)


@pytest.mark.parametrize("T, S, mask", [
    (1, 6, [[0, 1, 1, 0]]), (4, 4, [[0, 0, 1, 1], [1, 1, 1, 1]]),
    (3, 6, [[0, 0, 0, 1], [1, 0, 1, 0]]), (3, 5, None)])
def test_a_query_sees_the_text_before_it_and_padding_sees_itself(T, S, mask):
    """By loops. Of S keys the last are under the mask, the first are a prefix."""
    B = 1 if mask is None else len(mask)
    expected = torch.zeros(B, 1, T, S, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            query = S - T + t
            for key in range(query + 1):
                own = key - (S - len(mask[b])) if mask is not None else -1
                expected[b, 0, t, key] = own < 0 or mask[b][own] == 1 or key == query
    out = seen(T, S, None if mask is None else torch.tensor(mask) == 1, torch.device("cpu"))
    assert torch.equal(out.expand(B, 1, T, S), expected)
    assert out.any(-1).all(), "softmax over no key is NaN"


@pytest.mark.parametrize("mask", [[1] * 5 + [0] * 2, [0, 0, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]])
def test_padding_anywhere_is_as_if_it_was_not_there(mask, model, ids):
    real = torch.tensor(mask).bool()
    out = model(ids, attention_mask=real.expand(3, -1))
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, real], model(ids[:, real]), rtol=0, atol=SUM_ORDER)


def test_a_mask_that_hides_nothing_changes_nothing(model, ids):
    out = model(ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(out, model(ids), rtol=0, atol=SUM_ORDER)


@pytest.mark.parametrize("dtype, atol", [
    (torch.float32, SUM_ORDER),
    # bfloat16 keeps 8 bits: logits up to 4 have steps of 1/64, and a few roundings differ
    (torch.bfloat16, 3 / 64)])
def test_a_batch_of_unequal_rows_is_the_rows_alone(dtype, atol, model):
    """A token is compared where no other comes as near as the tolerance."""
    model, batch, n = model.to(dtype), pad_left(UNEQUAL), 12
    logits, out = model(**batch), model.generate(**batch, max_new_tokens=n)
    for row, of_row, said in zip(UNEQUAL, logits, out):
        torch.testing.assert_close(of_row[-len(row):], model(torch.tensor([row]))[0], rtol=0,
                                   atol=atol)
        said = said[-len(row) - n:]
        assert said[:len(row)].tolist() == row
        best, second = model(said[None, :-1])[0, -n:].float().topk(2).values.T
        clear = best - second > 2 * atol
        assert clear.sum() > n / 2
        wanted = model(said[None, :-1])[0, -n:].argmax(-1)
        assert torch.equal(said[-n:][clear], wanted[clear])


def test_each_row_of_a_batch_ends_where_it_ends_alone(model):
    batch, n = pad_left(UNEQUAL), 12
    free = [model.generate(torch.tensor([row]), n)[0, len(row):].tolist() for row in UNEQUAL]
    ends = [free[0][3], free[2][6]]
    expected = []
    for row in free:
        stop = next((i for i, token in enumerate(row) if token in ends), n)
        expected.append(row[:stop + 1] + [ends[0]] * (n - stop - 1))
    assert len({row.index(ends[0]) if ends[0] in row else n for row in expected}) > 2
    out = model.generate(**batch, max_new_tokens=n, eos_token_id=ends)
    T = batch["input_ids"].shape[1]
    assert torch.equal(out[:, :T], batch["input_ids"])
    assert out[:, T:].tolist() == [row[:out.shape[1] - T] for row in expected]


def test_sampling_from_a_batch_of_unequal_rows(model):
    """At a low temperature the likeliest, at a high one not; the stream yields columns."""
    batch = pad_left(UNEQUAL)
    likeliest = model.generate(**batch, max_new_tokens=5)
    assert torch.equal(model.generate(**batch, max_new_tokens=5, temperature=1e-6), likeliest)
    torch.manual_seed(3)
    hot = model.generate(**batch, max_new_tokens=5, temperature=5.0)
    assert hot.shape == likeliest.shape == (4, 30) and not torch.equal(hot, likeliest)
    new = list(model.stream(**batch, max_new_tokens=5))
    assert torch.equal(torch.cat(new, dim=1), likeliest[:, 25:])


def test_a_cache_remembers_its_padding_while_more_text_comes(model):
    """Two turns, padded both, then a token without a mask; beside each row's text in one piece."""
    first, second = pad_left(UNEQUAL), pad_left(UNEQUAL[::-1])
    third = torch.tensor([[1], [2], [3], [4]])
    caches = caches_of(model)
    model(**first, caches=caches)
    with pytest.raises(ValueError, match="at most 64 positions"):      # leaves the caches as before
        model(third.expand(-1, 60), caches=caches, attention_mask=torch.ones(4, 60).long())
    turn, token = model(**second, caches=caches), model(third, caches=caches)
    for b, (row, more) in enumerate(zip(UNEQUAL, UNEQUAL[::-1])):
        alone = model(torch.tensor([[*row, *more, b + 1]]))[0, len(row):]
        torch.testing.assert_close(torch.cat([turn[b, -len(more):], token[b]]), alone, rtol=0,
                                   atol=SUM_ORDER)


@pytest.mark.parametrize("mask", [None, [[0, 0, 1, 1, 1]]])
def test_unequal_rows_behind_a_start_that_they_share(mask, model):
    start, kept = torch.tensor([[9, 8, 7, 6, 5]]), 4
    caches = caches_of(model)
    model(start, caches=caches, attention_mask=None if mask is None else torch.tensor(mask))
    for cache in caches:
        cache.share(kept, len(UNEQUAL))
    out = model(**pad_left(UNEQUAL), caches=caches)
    before = [7, 6] if mask else [9, 8, 7, 6]
    for row, of_row in zip(UNEQUAL, out):
        alone = model(torch.tensor([before + row]))[0, len(before):]
        torch.testing.assert_close(of_row[-len(row):], alone, rtol=0, atol=SUM_ORDER)


def test_the_mask_of_a_forward_is_not_looked_at():
    """A GPU does not wait for it: on the meta device there is nothing to look at."""
    with torch.device("meta"):
        ids = torch.zeros(2, 5, dtype=torch.long)
        assert GPT(SMALL)(ids, attention_mask=ids).shape == (2, 5, 61)


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("mask, got", [
    ([[1, 1, 1], [1, 0, 1]], r"row 1 \[1, 0, 1\]"),                   # a hole
    ([[1, 1, 0], [1, 1, 1]], r"row 0 \[1, 1, 0\]"),                   # padded on the right
    ([[0, 0, 0], [1, 1, 1]], r"row 0 \[0, 0, 0\]"),                   # no text
    ([[1, 1, 1], [0, 1, 2]], r"row 1 \[0, 1, 2\]"),
    ([[-1, 0, 1], [0, 1, 1]], r"row 0 \[-1, 0, 1\]")])
def test_generation_goes_on_behind_text_only(mask, got, model):
    with pytest.raises(ValueError, match="wants padding on the left: .* as pad_left makes it; got "
                                         f"for {got}"):
        model.generate(IDS, 2, attention_mask=torch.tensor(mask))


@pytest.mark.parametrize("mask, got", [
    (torch.ones(2, 4, dtype=torch.long), r"torch.int64 \(2, 4\)"),
    (torch.ones(3, dtype=torch.bool), r"torch.bool \(3,\)"),
    (torch.zeros(2, 3), r"torch.float32 \(2, 3\)"),          # what others add to the scores
    ([[1, 1, 1], [1, 1, 1]], "<class 'list'>")])
def test_a_mask_of_another_shape_or_kind_is_refused(mask, got, model):
    for call in (lambda: model(IDS, attention_mask=mask),
                 lambda: model.generate(IDS, 2, attention_mask=mask)):
        with pytest.raises(ValueError, match=rf"shape of the token ids, \(2, 3\), got {got}"):
            call()


def test_rows_that_are_no_tensor_are_told_how_they_become_one(model):
    with pytest.raises(ValueError, match="got <class 'list'>; of rows of unequal lengths pad_left"):
        model.generate([[1, 2], [3]], 2)
