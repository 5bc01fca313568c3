"""Folders of tiny models as HuggingFace lays them out, written by hand: config.json, weights in one
file or several, a tokenizer trained on a few lines, a chat template."""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

from minipeft import GPT, GPTConfig

SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
LLAMA = {**SIZES, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 100.0,
         "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
         "bos_token_id": 0, "eos_token_id": 1}
CONTROL = ["<|start|>", "<|end|>", "<|of|>"]
TEXTS = ["the cat sat on the mat, and the dog lay down in the sun", "12 apples and 3450 pears",
         "for i in range(10):\n    print(i)\n", "Grüße aus Köln; où est le café?",
         "a  b   c\t\td\n\n"]
TEMPLATE = """\
{%- for message in messages %}
{{- '<|start|>' ~ message.role ~ '<|of|>' ~ message['content'] | trim ~ '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|of|>' }}{% endif %}
"""
# Llama 3's and Qwen's idea of a word: letters, at most three digits, signs, spaces, each apart
WORDS = Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_level(pre_tokenizer=None, **settings) -> Tokenizer:
    """As GPT-2's; `pre_tokenizer` cuts texts into other words."""
    tokenizer = Tokenizer(models.BPE(**settings))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer is None)
    tokenizer.pre_tokenizer = last if pre_tokenizer is None else pre_tokenizers.Sequence(
        [pre_tokenizer, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=310, special_tokens=CONTROL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 1's: "▁" for a space, one in front of a text, `<0x..>` for what is not known, and
    the start token in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(
        vocab_size=310, show_progress=False,
        special_tokens=["<unk>", *CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]))
    # the bytes are words of the vocabulary, and not to be found in a text
    entries = json.loads(tokenizer.to_str())
    entries["added_tokens"] = [t for t in entries["added_tokens"]
                               if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(entries))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", tokenizer.token_to_id("<|start|>"))])
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """With a token that is no control token, and one that swallows the spaces before it."""
    tokenizer.add_tokens([AddedToken("pears", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|mask|>", lstrip=True)])
    return tokenizer


def cut_and_filled(tokenizer: Tokenizer) -> Tokenizer:
    """As a training run may have left it: settings that a reader of texts must not obey."""
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=2**20)
    return tokenizer


TOKENIZERS = {
    "GPT-2's words": byte_level,
    "digits apart": lambda: byte_level(pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.Split(WORDS, "isolated")])),
    "Llama 3's words, whole words first": lambda: byte_level(
        pre_tokenizers.Split(WORDS, "isolated"), ignore_merges=True),
    "SentencePiece": sentence_piece,
    "added tokens": lambda: with_added(byte_level()),
    "cut and filled": lambda: cut_and_filled(byte_level()),
}


def write(folder: Path, entries: dict = LLAMA, tokenizer: Tokenizer | None = None,
          template: str | None = TEMPLATE, dtype: torch.dtype = torch.float32,
          shards: int = 1) -> dict[str, torch.Tensor]:
    """A folder of a random model, every bias and norm moved off its first value; its tensors."""
    torch.manual_seed(0)
    biases = {"qwen2": ("q_proj", "k_proj", "v_proj")}.get(entries["model_type"], ())
    sizes = {name: entries[name] for name in (*SIZES, "tie_word_embeddings", "rms_norm_eps",
                                              "rope_theta")}
    model = GPT(GPTConfig(**sizes, head_dim=entries.get("head_dim"), biases=biases,
                          qk_norm=entries["model_type"] == "qwen3"))
    tensors = {name: (t + 0.1 * torch.randn_like(t)).to(dtype)
               for name, t in model.state_dict().items()
               if name != "lm_head.weight" or not entries["tie_word_embeddings"]}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    write_weights(folder, tensors, shards)
    write_tokenizer(folder, byte_level() if tokenizer is None else tokenizer, template)
    return tensors


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    if shards == 1:
        return save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": size}, "weight_map": weight_map}))


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: str | None) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True},
        "clean_up_tokenization_spaces": False,
        **({} if template is None else {"chat_template": template})}))
