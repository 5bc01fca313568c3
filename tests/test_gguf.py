"""GGUF beyond SmolLM2's file: every type of tensor, heads and tokenizers of other models."""
import math
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import tiny_gguf
import torch
from byte_pairs import BytePairs, sentence_pieces, words_of, words_of_llama_3

from minipeft.files import read_json
from minipeft.llm.gguf import BF16, BLOCK, F16, F32, GGUF, Q4_0, Q4_1, Q8_0, dequantize

pytest.importorskip("tokenizers")
from minipeft.llm.gguf_model import load

GOLDEN = read_json(tiny_gguf.GOLDEN)["types"]
KINDS = {"F32": F32, "F16": F16, "BF16": BF16, "Q4_0": Q4_0, "Q4_1": Q4_1, "Q8_0": Q8_0}


def by_loops(content: bytes, kind: int) -> list[float]:
    """The weights of a tensor, a number at a time, as ggml-quants.c and ggml-impl.h say."""
    weights = []
    if kind in (F32, F16):
        return [w for w, in struct.iter_unpack("<f" if kind == F32 else "<e", content)]
    if kind == BF16:
        return [struct.unpack("<f", b"\0\0" + content[i:i + 2])[0]
                for i in range(0, len(content), 2)]
    size = {Q4_0: 18, Q4_1: 20, Q8_0: 34}[kind]
    for start in range(0, len(content), size):
        block = content[start:start + size]
        (scale,) = struct.unpack_from("<e", block)
        if kind == Q8_0:
            weights += [scale * code for code in struct.unpack_from("<32b", block, 2)]
            continue
        codes = block[-16:]
        low = struct.unpack_from("<e", block, 2)[0] if kind == Q4_1 else -8 * scale
        weights += [scale * (c & 15) + low for c in codes] + [scale * (c >> 4) + low for c in codes]
    return weights


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_are_those_of_llama_cpps_own_python_package(name):
    golden, kind = GOLDEN[name], KINDS[name]
    assert golden["type"] == kind
    content = bytes.fromhex(golden["bytes"])
    blocks = np.frombuffer(content, BLOCK[kind])
    assert dequantize(blocks, kind).ravel().tolist() == golden["weights"]
    # products of float32 beside those of Python's double precision
    assert by_loops(content, kind) == pytest.approx(golden["weights"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_the_package_gguf_reads_the_same_from_random_bytes(name, tmp_path):
    quants = pytest.importorskip("gguf.quants")
    torch.manual_seed(0)
    content = tiny_gguf.packed(torch.randn(64, 64), KINDS[name], np.random.default_rng(1))
    theirs = quants.dequantize(np.frombuffer(content, np.uint8).reshape(64, -1),
                               quants.GGMLQuantizationType[name])
    ours = dequantize(np.frombuffer(content, BLOCK[KINDS[name]]), KINDS[name]).reshape(64, 64)
    assert (ours == theirs).all()


def hf_weights(tensors: dict, config, kind="llama") -> dict[str, torch.Tensor]:
    """Names and rows as HuggingFace has them, by loops: row 2 i + j of a head of a Llama's q or k,
    in the file, is row i + j D / 2."""
    names = {ours: theirs for theirs, ours in tiny_gguf.LAYER.items()} | {
        "token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
    found, D = {}, config.head_dim
    for name, (shape, type_, content) in tensors.items():
        *layer, part, end = name.removeprefix("blk.").split(".")
        weight = torch.tensor(by_loops(content, type_)).view(shape)
        if part in ("attn_q", "attn_k") and kind == "llama":
            rows = [head + i % (D // 2) * 2 + i // (D // 2)
                    for head in range(0, shape[0], D) for i in range(D)]
            weight = weight[rows]
        prefix = f"model.layers.{layer[0]}." if layer else "model." * (part != "output")
        found[f"{prefix}{names[part]}.{end}"] = weight
    if config.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def check_logits(model, theirs, weights):
    """Beyond 32 tokens, which is what the scaled positions below are stretched from."""
    theirs.load_state_dict(weights)
    ids = torch.arange(2 * 50).view(2, 50)
    with torch.no_grad():
        ours, wanted = model(ids), theirs.eval()(ids).logits
    # float32 sums in another order, of logits around 10
    torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("kinds, tied", [
    ([F32], True), ([F16], False), ([BF16], True), ([Q4_0], True), ([Q4_1], False), ([Q8_0], True),
    ([Q4_0, BF16, Q8_0, F16, Q4_1, F32], False)])
def test_logits_are_those_of_transformers_llama_with_the_weights_of_the_loops(kinds, tied,
                                                                             tmp_path):
    transformers = pytest.importorskip("transformers")
    config = replace(tiny_gguf.CONFIG, tie_word_embeddings=tied, rms_norm_eps=1e-5)
    torch.manual_seed(0)
    tensors = tiny_gguf.tensors(config, kinds)
    model, _ = load(GGUF(tiny_gguf.write(tmp_path / "a.gguf", lambda: tensors)))
    assert model.config == config
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes_of(config)))
    check_logits(model, theirs, hf_weights(tensors, config))


def sizes_of(config, **others) -> dict:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps",
             "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
             "tie_word_embeddings", "head_dim")
    return {**{name: getattr(config, name) for name in names},
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}, **others}


def renamed(kind: str, **changes) -> dict:
    """The tiny file's metadata as another architecture has them."""
    found = {key.replace("llama.", f"{kind}.", 1): value for key, value in
             tiny_gguf.metadata(**changes).items()}
    return found | {"general.architecture": kind}


@pytest.mark.parametrize("kind, fields, changes", [
    ("qwen2", dict(biases=("q_proj", "k_proj", "v_proj")), {}),
    ("qwen3", dict(qk_norm=True, head_dim=16), {"llama.attention.key_length": 16,
                                                 "llama.attention.value_length": 16,
                                                 "llama.rope.dimension_count": 16})])
def test_logits_of_qwen_are_those_of_transformers_qwen(kind, fields, changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = replace(tiny_gguf.CONFIG, **fields, rms_norm_eps=1e-5)
    torch.manual_seed(0)
    tensors = tiny_gguf.tensors(config, [F32, Q8_0])
    (tmp_path / "a.gguf").write_bytes(tiny_gguf.gguf_bytes(renamed(kind, **changes), tensors))
    model, _ = load(GGUF(tmp_path / "a.gguf"))
    assert model.config == config
    name = kind.title()
    theirs = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**sizes_of(config)))
    check_logits(model, theirs, hf_weights(tensors, config, kind))


def llama_3_factors(dim: int, theta: float, factor: float) -> list[float]:
    """As llama.cpp's convert_hf_to_gguf.py writes them for a model first trained on 8192 tokens."""
    factors = []
    for i in range(0, dim, 2):
        turns = 8192 / (2 * math.pi * theta ** (i / dim))
        keep = min(max((turns - 1) / (4 - 1), 0), 1)
        factors.append(1 / ((1 - keep) / factor + keep))
    return factors


def test_positions_of_llama_3_1_are_read_from_their_tensor_and_linear_ones_from_the_metadata(
        tmp_path):
    transformers = pytest.importorskip("transformers")
    theta, config = 500000.0, replace(tiny_gguf.CONFIG, rope_theta=500000.0, rms_norm_eps=1e-5)
    tensors = tiny_gguf.tensors(config, [F32])
    factors = llama_3_factors(config.head_dim, theta, 8.0)
    assert len(set(factors)) >= 3                            # 1, 8 and one between
    frequencies = {"rope_freqs.weight": ((4,), F32, struct.pack("<4f", *factors))}
    cases = [(tensors | frequencies, {}, {"rope_type": "llama3", "factor": 8.0,
                                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 8192}),
             (tensors, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
              {"rope_type": "linear", "factor": 4.0})]
    for tensors_, changes, scaling in cases:
        path = tiny_gguf.write(tmp_path / "a.gguf", lambda found=tensors_: found,
                               **{"llama.rope.freq_base": theta, **changes})
        model, _ = load(GGUF(path))
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            **sizes_of(config, rope_parameters={**scaling, "rope_theta": theta})))
        check_logits(model, theirs, hf_weights(tensors, config))


# Tokenizers

PIECES = [*"ab Z190\n\t\r.,'sté²½٣Ⅷ中\u2028\u3000\x1c\U0001f600-_{\"}", "don't", "I'LL", "  ",
          "\n\n", " \n", "2024", "the", "then", "<|im_end|>"]


def random_texts(n: int, pieces=PIECES):
    rng = random.Random(0)
    return ["".join(rng.choices(pieces, k=rng.randrange(1, 12))) for _ in range(n)]


def with_merges(pre: str, **others) -> dict:
    """The tiny byte pairs with some more; "then" is a token that no merges make."""
    words = tiny_gguf.metadata()["tokenizer.ggml.tokens"]
    pairs = ["Ċ Ċ", "t h", "th e", "Ġ the", "Ġ Ġ", "2 0", "20 2", "' s", "' L", "a b"]
    tokens = [*words[:-2], *dict.fromkeys(pair.replace(" ", "") for pair in pairs), "then"]
    return tiny_gguf.metadata(**{
        "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens, "llama.vocab_size": len(tokens),
        "tokenizer.ggml.merges": pairs, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3), **others})


def written(path, metadata: dict):
    config = replace(tiny_gguf.CONFIG, vocab_size=metadata["llama.vocab_size"])
    path.write_bytes(tiny_gguf.gguf_bytes(metadata, tiny_gguf.tensors(config, [F32])))
    return GGUF(path)


@pytest.mark.parametrize("pre, loops", [
    ("gpt-2", dict(digits=False)), ("smollm", dict()),
    ("llama-bpe", dict(digits=False, words_of=words_of_llama_3, whole=True)),
    ("qwen2", dict(digits=False, words_of=lambda text: words_of_llama_3(text, most_digits=1)))])
def test_token_ids_of_byte_pairs_are_those_of_the_loops(pre, loops, tmp_path):
    file = written(tmp_path / "a.gguf", with_merges(pre))
    _, tokenizer = load(file)
    loops = BytePairs(file.path, **loops)
    for text in random_texts(500):
        assert tokenizer.encode(text).ids == loops.encode(text), text
    assert ("then" in tokenizer.encode("then").tokens) == (pre == "llama-bpe")
    assert (words_of("then 2024")) == ["then", " 2024"]


def test_token_ids_of_qwen2_are_those_of_transformers_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    metadata = with_merges("qwen2")
    _, tokenizer = load(written(tmp_path / "a.gguf", metadata))
    vocab = {word: i for i, word in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    theirs = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in [*random_texts(200, PIECES[:-1]), "e\u0301 A\u030a ﬁ"]:      # joined: é, Å, not ﬁ
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"], text


def test_llama_3_puts_a_token_in_front_unless_the_file_says_no(tmp_path):
    for said, wanted in ((None, [1]), (True, [1]), (False, [])):
        metadata = with_merges("llama-bpe", **{"tokenizer.ggml.add_bos_token": said})
        metadata = {key: value for key, value in metadata.items() if value is not None}
        _, tokenizer = load(written(tmp_path / "a.gguf", metadata))
        plain = tokenizer.encode("hi", add_special_tokens=False).ids
        assert tokenizer.encode("hi").ids == wanted + plain and len(plain) == 2


LETTERS = "\u2581abcdeé"


def with_pieces(**changes) -> dict:
    """A vocabulary of pieces: letters, and random joins of two pieces, with random scores."""
    rng = random.Random(1)
    pieces = list(LETTERS)
    while len(pieces) < 120:
        new = rng.choice(pieces) + rng.choice(pieces)
        if new not in pieces and len(new) < 9 and new.count(new[0]) == 1:
            pieces.append(new)
    metadata = tiny_gguf.pieces()
    tokens = [*metadata["tokenizer.ggml.tokens"][:259], *pieces]
    return tiny_gguf.pieces(**{
        "llama.vocab_size": len(tokens), "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.scores": [0.0] * 259 + rng.sample([-float(i) for i in range(1, 400)],
                                                          len(pieces))} | changes)


def test_token_ids_of_pieces_are_those_of_the_loops_and_decode_to_the_text(tmp_path):
    metadata = with_pieces()
    _, tokenizer = load(written(tmp_path / "a.gguf", metadata))
    ids = {word: i for i, word in enumerate(metadata["tokenizer.ggml.tokens"])}
    for text in random_texts(500, [*"abcdeé ", "\n", "中", "<", "\U0001f600", "  "]):
        wanted = sentence_pieces(text, ids, metadata["tokenizer.ggml.scores"])
        assert tokenizer.encode(text).ids == [1, *wanted], text
        assert tokenizer.decode(wanted) == text
    assert tokenizer.encode("a</s>b").ids == [1, *sentence_pieces(
        "a", ids, metadata["tokenizer.ggml.scores"]), 2, *sentence_pieces(
        "b", ids, metadata["tokenizer.ggml.scores"])]


def test_pieces_without_a_space_in_front(tmp_path):
    metadata = with_pieces(**{"tokenizer.ggml.add_space_prefix": False})
    _, tokenizer = load(written(tmp_path / "a.gguf", metadata))
    ids = {word: i for i, word in enumerate(metadata["tokenizer.ggml.tokens"])}
    assert tokenizer.encode("a\n").ids == [1, ids["a"], ids["<0x0A>"]]
    assert tokenizer.decode([ids["\u2581"], ids["a"]]) == " a"


BAD_PIECES = {
    "a score too few": ({"scores": [0.0] * 260}, "scores must be a finite number for each of 261"),
    "no number": ({"scores": [float("nan")] * 261}, "scores must be a finite number"),
    "a byte missing": ({"token_type": [2, 3, 3] + [6] * 255 + [1] * 3}, "<0xFF> is missing"),
    "an unknown type": ({"token_type": [7] * 261}, "token_type of 1, 2, 3, 4, 5, 6"),
    "a text in front": ({"bos_token_id": 259}, "must be the id of a control token, got 259"),
    "an id too far": ({"bos_token_id": 261}, "must be the id of a control token, got 261"),
    "no token in front": ({"bos_token_id": None}, "bos_token_id must be a whole number, got None"),
    "neither yes nor no": ({"add_bos_token": 1}, "add_bos_token must be true or false, got 1"),
    "a token behind": ({"add_eos_token": True}, "add_eos_token is True, and only False"),
    "a piece of 300": ({"tokens": [*tiny_gguf.pieces()["tokenizer.ggml.tokens"][:-1], "h" * 300]},
                       "at most 256 characters, got 300"),
}


@pytest.mark.parametrize("change", BAD_PIECES)
def test_pieces_that_are_none_are_refused(change, tmp_path):
    changes, message = BAD_PIECES[change]
    path = tiny_gguf.write(tmp_path / "a.gguf", metadata=tiny_gguf.pieces,
                           **{f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message) as caught:
        load(GGUF(path))
    assert "a.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, content", [
    (F16, b"\0\x7c" * 32), (BF16, b"\x80\x7f" * 32), (BF16, b"\xc0\xff" * 32),
    (Q4_0, b"\0\x7c" + bytes(16)), (Q4_0, b"\0\x7e" + b"\x88" * 16),
    (Q4_1, b"\0\0\0\x7c" + bytes(16))])
def test_a_weight_that_is_not_finite_is_refused_in_every_type(kind, content, tmp_path):
    tensors = tiny_gguf.tensors() | {"output_norm.weight": ((32,), kind, content)}
    path = tiny_gguf.write(tmp_path / "a.gguf", lambda: tensors)
    with pytest.raises(ValueError, match="a.gguf: tensor output_norm.weight must hold finite num"):
        load(GGUF(path))


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0])
def test_a_row_is_a_number_of_whole_blocks(kind, tmp_path):
    """64 weights in rows of 16: each row would end inside a block."""
    tensors = {"t": ((4, 16), kind, bytes(2 * BLOCK[kind].itemsize))}
    (tmp_path / "a.gguf").write_bytes(tiny_gguf.gguf_bytes(tiny_gguf.metadata(), tensors))
    with pytest.raises(ValueError, match=r"rows of blocks of 32 weights, got the shape \(4, 16\)"):
        GGUF(tmp_path / "a.gguf")
