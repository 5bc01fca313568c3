"""A whole GGUF file of a tiny Llama, byte by byte as the format's description says."""
import struct
from pathlib import Path

import numpy as np
import torch

from minipeft import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                   num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                   tie_word_embeddings=True)
GOLDEN = Path(__file__).parent / "golden" / "gguf_types.json"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAYER = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
         "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm"}
SCALARS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def metadata(**changes) -> dict:
    """Of the tiny model; `changes` with "_" for ".", None takes a key away."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in prints] + [chr(256 + i) for i in range(256 - len(prints))]
    found = {
        "general.architecture": "llama", "llama.block_count": CONFIG.num_hidden_layers,
        "llama.context_length": 64, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 261,
        "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*CONTROL, *letters, "ĊĊ", "th"],
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 258,
        "tokenizer.ggml.merges": ["Ċ Ċ", "t h"], "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False}
    found |= changes
    return {key: value for key, value in found.items() if value is not None}


def pieces(**changes) -> dict:
    """The same with a tokenizer as Llama 1 and 2 have it: pieces of sentences and their scores."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "h"]
    ours = {"model": "llama", "pre": None, "tokens": words, "merges": None,
            "token_type": [2, 3, 3] + [6] * 256 + [1, 1], "scores": [-float(i) for i in range(261)],
            "bos_token_id": 1, "add_bos_token": None}
    return metadata(**{f"tokenizer.ggml.{key}": value for key, value in ours.items()} | changes)


def packed(tensor, kind: int, rng) -> bytes:
    """A tensor's bytes: as they are in F32, F16 and BF16, else blocks of random codes."""
    if kind in (0, 1):
        return tensor.numpy().astype(("<f4", "<f2")[kind]).tobytes()
    if kind == 30:                                       # the upper half of each float32
        return tensor.numpy().astype("<f4").view("<u2")[..., 1::2].tobytes()
    form, values, n = {2: ("<e", (0.01,), 16), 3: ("<ee", (0.01, -0.1), 16),
                       8: ("<e", (0.01,), 32)}[kind]
    return b"".join(struct.pack(form, *values) + rng.bytes(n) for _ in range(tensor.numel() // 32))


def tensors(config=CONFIG, kinds=None) -> dict[str, tuple[tuple, int, bytes]]:
    """Name: (shape, type, bytes); matrices of the types `kinds` in turn, or else the embedding in
    Q8_0, one matrix in Q4_1 and the rest in F32."""
    rng, found = np.random.default_rng(0), {}
    for name, tensor in GPT(config).state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name, _, end = name.rpartition(".")
        layer = name.removeprefix("model.").split(".", 2)
        known = (f"blk.{layer[1]}.{LAYER[layer[2]]}" if layer[0] == "layers" else
                 {"embed_tokens": "token_embd", "norm": "output_norm",
                  "lm_head": "output"}[layer[0]])
        kind = {"token_embd": 8, "blk.0.ffn_down": 3}.get(known, 0)
        if kinds is not None:
            kind = kinds[len(found) % len(kinds)] if tensor.ndim == 2 else 0
        if known.endswith("norm") or end == "bias":      # otherwise ones and zeros
            tensor = torch.randn_like(tensor)
        found[f"{known}.{end}"] = tuple(tensor.shape), kind, packed(tensor, kind, rng)
    return found


def text(string: str) -> bytes:
    return struct.pack("<Q", len(string.encode())) + string.encode()


def value(content) -> bytes:
    if isinstance(content, bytes):                       # as it stands, type and all
        return content
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    if isinstance(content, list):
        kind, form = {str: (8, ""), int: (5, "i"), float: (6, "f")}[type(content[0])]
        head = struct.pack("<IIQ", 9, kind, len(content))
        return head + (b"".join(map(text, content)) if kind == 8
                       else struct.pack(f"<{len(content)}{form}", *content))
    kind, form = SCALARS[type(content)]
    return struct.pack("<I" + form, kind, content)


def gguf_bytes(metadata: dict, tensors: dict, alignment: int = 32) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    body = b""
    for name, (shape, kind, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind,
                                         len(body))
        body += content + b"\0" * (-len(content) % alignment)
    return head + b"\0" * (-len(head) % alignment) + body


def write(path, tensors=tensors, metadata=metadata, **changes):
    path.write_bytes(gguf_bytes(metadata(**changes), tensors()))
    return path
