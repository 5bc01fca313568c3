"""A folder read by minipeft.llm.load is what transformers reads from it."""
import json
import re
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("tokenizers")

import peft
import tiny_folder
import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minipeft import LoraConfig, get_peft_model
from minipeft.llm import chat, checkpoint, load, run_files, smollm2
from minipeft.train import TrainConfig, train

from .peers import loads_quietly

SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
             bos_token_id=0, eos_token_id=1, pad_token_id=None)
# name: (model_type, what its class has beside SIZES)
FAMILIES = {
    "Llama": ("llama", {}),
    "Llama with biases": ("llama", {"attention_bias": True}),
    "Llama with wide heads": ("llama", {"head_dim": 32}),
    "Mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "Mistral, window as long as the context": ("mistral", {"sliding_window": 96}),
    "Qwen2": ("qwen2", {"sliding_window": 4, "use_sliding_window": False}),
    "Qwen3": ("qwen3", {"head_dim": 32}),
    "Qwen3 with biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
# what config.json says of positions: transformers 5's way, and the ways before
ROPES = {
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}},
    "theta alone": {"rope_theta": 77.0},
    "linear, old": {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama3, old": {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "nothing": {},
}
IDS = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(1))
# the same float32 operations in the same order on both sides: 0 where this was written
SUM_ORDER = 1e-5


def write(folder, family: str, tied: bool = False, rope: dict = ROPES["default"]):
    """A folder that transformers writes, every parameter moved off its first value, and its model
    as transformers reads it."""
    kind, more = FAMILIES[family]
    config = AutoConfig.for_model(kind, **SIZES, **more, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="100KB" if tied else "1GB")
    entries = json.loads((folder / "config.json").read_text())
    del entries["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(entries | rope))
    tiny_folder.write_tokenizer(folder, tiny_folder.byte_level(), tiny_folder.TEMPLATE)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


CASES = [(family, rope, tied) for i, family in enumerate(FAMILIES)
         for rope in (ROPES if family == "Llama" else ("default", "linear", "llama3, old"))
         for tied in ([True, False] if rope == "default" else [bool(i % 2)])]


@torch.no_grad()
@pytest.mark.parametrize("family, rope, tied", CASES)
def test_the_logits_are_transformers(family, rope, tied, tmp_path, compare):
    theirs = write(tmp_path, family, tied, ROPES[rope])
    ours, tokenizer = load(tmp_path)
    assert ours.tied == tied and tokenizer.end_ids == (1,)
    compare(f"GPT from a folder: logits, {family}", "`transformers`", ours(IDS),
            theirs(IDS).logits, SUM_ORDER)
    assert theirs(IDS).logits.std() > 0.3               # of which SUM_ORDER is nothing


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_greedy_tokens_beyond_the_original_context_are_transformers(family, tmp_path, compare):
    theirs, ids = write(tmp_path, family, rope=ROPES["llama3"]), IDS[:, :20]
    ours, _ = load(tmp_path)
    compare("GPT from a folder: greedy tokens", "`transformers`", ours.generate(ids, 40),
            theirs.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None,
                            pad_token_id=0), 0)


def test_every_bias_norm_and_rope_entry_counts(tmp_path):
    """Each is left out of the model in turn, and the logits are no longer transformers'."""
    for family, names in (("Qwen2", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
                          ("Llama with biases", ("o_proj.bias",)),
                          ("Qwen3", ("q_norm.weight", "k_norm.weight"))):
        folder = tmp_path / family
        theirs = write(folder, family)(IDS).logits
        for name in names:
            ours, _ = load(folder)
            path, _, kind = f"model.layers.1.self_attn.{name}".rpartition(".")
            with torch.no_grad():
                getattr(ours.get_submodule(path), kind).fill_(0.0 if kind == "bias" else 1.0)
            # a key's bias moves the logits least: softmax forgets what all keys share
            assert (ours(IDS) - theirs).abs().max() > 100 * SUM_ORDER, name


# One entry of config.json each, some of them other models'. transformers' classes for these
# families leave unread what is not theirs.
ODD = [*({"hidden_act": v} for v in ("gelu", "swish")), {"rms_norm_eps": 0.5}, {"rope_theta": 3},
       *({"attention_bias": v} for v in (True, False, 1)), {"mlp_bias": True},
       *({"head_dim": v} for v in (8, None)), *({"num_key_value_heads": v} for v in (None, 4)),
       {"tie_word_embeddings": True}, {"max_position_embeddings": 90}, {"use_cache": False},
       *({"sliding_window": v} for v in (8, None, 4096)), {"use_sliding_window": True},
       {"layer_types": ["sliding_attention", "full_attention"]}, {"is_causal": False},
       {"partial_rotary_factor": 0.5}, {"rope_scaling": {"type": "linear", "factor": 2}},
       {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"rope_scaling": {"factor": 4.0}},
       {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
       {"rope_parameters": {"rope_theta": 9.0}},
       {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
       {"original_max_position_embeddings": 16}, {"attn_logit_softcapping": 5.0},
       {"query_pre_attn_scalar": 4}, {"logit_scale": 0.1}, {"num_experts": 4}, {"qk_norm": True},
       {"attention_chunk_size": 4}, {"dtype": "bfloat16"}, {"intermediate_size": 64},
       {"num_hidden_layers": 1}, {"num_attention_heads": 8}, {"model_type": "gemma"}]


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_an_odd_entry_is_computed_as_transformers_does_or_named(family, tmp_path):
    write(tmp_path, family, rope={"rope_theta": 500.0})
    path, computed = tmp_path / "config.json", 0
    entries = json.loads(path.read_text())
    for change in ODD:
        path.write_text(json.dumps(entries | change))
        try:
            ours, _ = load(tmp_path)
        except ValueError as error:      # or the tensor, whose shape or name then is another
            assert re.search(rf"{next(iter(change))}|must have shape|lacks|unexpected", str(error))
            continue
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert (ours(IDS) - theirs(IDS).logits).abs().max() < SUM_ORDER, change
        computed += 1
    assert 10 < computed < len(ODD) - 10


# ---------------------------------------------------------------- tokens and chats

TEXTS = [*tiny_folder.TEXTS, "", " ", "\n", "  leading", "trailing  ", "1234567890", "x=  3",
         "日本語とemoji 🙂‍↔️", "é vs é", "a<|end|>b <|start|>", "pears and  <|mask|> pears",
         "\u00a0non\u2003breaking", "don't I'll WE'VE", "\x00\x07", "ﬁ ²", "<0x41>", "▁x"]
CHATS = [[{"role": "user", "content": "Hello"}],
         [{"role": "system", "content": " Be <brief>. "}, {"role": "user", "content": "Hi & bye"},
          {"role": "assistant", "content": "Bye\n"}, {"role": "user", "content": "ü\"'{{ x }}"}],
         [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
         [{"role": "assistant", "content": "begins"}]]
TEMPLATES = {
    "loop, trim": tiny_folder.TEMPLATE,
    "namespace, alternation or an exception": """
{% set state = namespace(wanted='user', system='') %}
{% for turn in messages %}
    {% if turn.role == 'system' and loop.first %}
        {% set state.system = turn.content | trim ~ ' / ' %}
        {% continue %}
    {% endif %}
    {% if turn.role != state.wanted %}
        {{ raise_exception('It is the turn of the ' ~ state.wanted) }}
    {% endif %}
    {% set state.wanted = 'assistant' if state.wanted == 'user' else 'user' %}
    {{- bos_token if loop.first else '' }}[{{ turn.role | upper }}] {{ state.system }}
    {{- turn.content }}
    {% set state.system = '' %}
    {% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}
""",
    "JSON, slices, macros": """\
{% macro block(turn, number) -%}
#{{ number }} {{ turn | tojson }} {{ turn.content[:3] | tojson(indent=2) }}
{%- endmacro %}
{% for turn in messages[::-1] if turn.content is defined and turn['content'] | length > 0 -%}
{{ block(turn, loop.revindex0) }}{{ ', ' if not loop.last }}
{% else %}nobody{% endfor %}
{% if tools is none and not documents %}{{ strftime_now('%Y')[:2] }}{% endif %}""",
    "what is not there": "{{ messages[0]['name'] if messages and 'name' in messages[0] else '?' }}"
                         "{{ nobody | default('none') }}{{ pad_token }}"
                         "{% for k, v in messages[-1].items() %}"
                         "{{ k }}={{ v | replace('\\n', ' ') }}{% endfor %}"
                         "{% generation %}{{ messages[0].content }}{% endgeneration %}",
}


@pytest.mark.parametrize("name", tiny_folder.TOKENIZERS)
def test_the_tokens_are_transformers(name, tmp_path):
    tiny_folder.write(tmp_path, tokenizer=tiny_folder.TOKENIZERS[name]())
    _, ours = load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special).input_ids
            assert ours.encode(text, add_special_tokens=special).ids == ids, text
            for skip in (True, False):
                assert (ours.decode(ids, skip_special_tokens=skip)
                        == theirs.decode(ids, skip_special_tokens=skip)), text


@pytest.mark.parametrize("place", ["its own file", "tokenizer_config.json", "one of several"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_text_and_its_tokens_are_transformers(name, place, tmp_path):
    tiny_folder.write(tmp_path, template=None if place == "its own file" else TEMPLATES[name])
    settings = tmp_path / "tokenizer_config.json"
    if place == "its own file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    if place == "one of several":
        entries = json.loads(settings.read_text())
        entries["chat_template"] = [{"name": "tools", "template": "{{ tools }}"},
                                    {"name": "default", "template": TEMPLATES[name]}]
        settings.write_text(json.dumps(entries))
    _, ours = load(tmp_path)
    theirs, refused = AutoTokenizer.from_pretrained(tmp_path), 0
    for messages in CHATS:
        for prompt in (True, False):
            try:
                text = theirs.apply_chat_template(messages, tokenize=False,
                                                  add_generation_prompt=prompt)
            except TemplateError:
                refused += 1
                with pytest.raises(ValueError, match="does not take this conversation"):
                    ours.chat_text(messages, prompt)
                continue
            assert ours.chat_text(messages, prompt) == text
            ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
            assert ours.encode(text).ids == ids
    assert refused < 2 * len(CHATS)


@pytest.mark.parametrize("added", [False, True])
def test_old_folders_name_their_control_tokens_in_a_file_of_their_own(added, tmp_path):
    """Which counts, says transformers, where tokenizer_config.json lists no added tokens."""
    tiny_folder.write(tmp_path, template="{{ bos_token }}{% for m in messages %}"
                                         "{{ m.content }}{{ eos_token }}{% endfor %}")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    if added:
        settings["added_tokens_decoder"] = {str(i): {"content": word, "special": True}
                                            for i, word in enumerate(tiny_folder.CONTROL)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    names = tmp_path / "special_tokens_map.json"
    names.write_text(json.dumps({"bos_token": "<|of|>", "eos_token": {"content": "<|end|>"}}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load(tmp_path)[1]
    text = theirs.apply_chat_template(CHATS[2], tokenize=False)
    assert ours.chat_text(CHATS[2], False) == text
    assert text == ("<|start|>ab" if added else "<|of|>a<|end|>b<|end|>")


# As Zephyr's and TinyLlama's, whose turns begin with a line, as Mistral's, where a space stands
# between question and answer, and as Llama 3's; {% generation %} marks what the assistant says
TURNS = {
    "lines": """\
{% for m in messages %}<|start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}
{% else %}{{ m.content }}<|end|>{% endif %}{{ '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""",
    "a space": """\
<|start|>{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ ' ' ~ m.content }}<|end|>{% endgeneration %}
{% else %}[I] {{ m.content }} [/I]{% endif %}{% endfor %}""",
    "control tokens": """\
{% for m in messages %}<|start|>{{ m.role }}<|of|>
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}
{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}
{% if add_generation_prompt %}<|start|>assistant<|of|>{% endif %}""",
}
TALKS = [[{"role": role, "content": content} for role, content in zip(("user", "assistant") * 2, c)]
         for c in (("the cat", "sat on the mat"), ("12", "the dog lay down", "and", "in the sun"),
                   ("a", "1 apple", "b  c", "Grüße"))]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("name", tiny_folder.TOKENIZERS)
def test_what_is_learned_are_the_tokens_that_transformers_makes_of_the_conversation(
        name, turns, tmp_path):
    """Also where a tokenizer puts a space in front of every text. The last turn ends at its end."""
    tokenizer = tiny_folder.TOKENIZERS[name]()
    tiny_folder.write(tmp_path, tiny_folder.LLAMA | {"eos_token_id": tokenizer.token_to_id(
        "<|end|>")}, tokenizer, TURNS[turns])
    ours, theirs = load(tmp_path)[1], AutoTokenizer.from_pretrained(tmp_path)
    for messages in TALKS:
        ids, labels = chat.encode_by_template(messages, ours.chat_text,
                                              lambda text: ours.encode(text).ids, ours.end_ids)
        wanted = theirs.apply_chat_template(messages, return_dict=True,
                                            return_assistant_tokens_mask=True)
        assert ids == wanted["input_ids"][:len(ids)]
        assert ours.end_ids == tuple(ids[-1:]) and ids[-1] not in wanted["input_ids"][len(ids):]
        learned = [i for i, said in zip(wanted["input_ids"], wanted["assistant_masks"]) if said]
        assert [i for i in labels if i != -100] == learned


# ---------------------------------------------------------------- adapters, merging


def trained(model, r: int = 4):
    """LoRA on all linears after five steps."""
    torch.manual_seed(3)
    peft_model = get_peft_model(model, LoraConfig(r, target_modules="all-linear"))
    train(peft_model, [(IDS[:, :20], IDS[:, :20])] * 5, TrainConfig(3e-2, warmup_steps=0), 5)
    return peft_model.eval()


@pytest.mark.parametrize("family", ["Llama with wide heads", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("four_bit", [False, True], ids=["LoRA", "QLoRA"])
def test_an_adapter_trained_on_a_folder_opens_in_hf_peft(family, four_bit, tmp_path, compare):
    theirs = write(tmp_path / "model", family)
    ours = trained(load(tmp_path / "model", four_bit=four_bit)[0])
    ours.save_pretrained(tmp_path / "adapter")
    if four_bit:
        pytest.importorskip("bitsandbytes")
        from .test_qlora import bnb_quantized
        theirs = bnb_quantized(theirs, double_quant=True)
    theirs = loads_quietly(peft.PeftModel.from_pretrained, theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        what = f"GPT from a folder: logits under {'QLoRA' if four_bit else 'LoRA'}"
        compare(what, "`transformers` + `peft`", ours(IDS), theirs(IDS).logits, SUM_ORDER)
        assert (ours(IDS) - ours.unload()(IDS)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_a_folder_for_both(family, tmp_path, compare):
    write(tmp_path / "model", family, rope=ROPES["llama3"], tied=family == "Qwen2")
    model, tokenizer = load(tmp_path / "model")
    with torch.enable_grad():
        merged = trained(model).merge_and_unload()
    (tmp_path / "merged").mkdir()
    run_files.write_weights(merged, tmp_path / "merged")
    checkpoint.write_transformers_files(merged, tokenizer, tmp_path / "merged")
    again, same_tokenizer = load(tmp_path / "merged")
    compare("GPT from a folder: logits, merged and read again", "itself", again(IDS), merged(IDS),
            0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    compare("GPT from a folder: logits, merged", "`transformers`", merged(IDS), theirs(IDS).logits,
            SUM_ORDER)
    assert theirs.dtype == torch.float32 and theirs.config.eos_token_id == 1
    assert same_tokenizer.chat_text(CHATS[1]) == tokenizer.chat_text(CHATS[1])
    assert same_tokenizer.end_ids == tokenizer.end_ids


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, pytest.param(30, marks=pytest.mark.long)])
def test_smollm2_merged_is_a_folder_of_its_own(layers, tmp_path):
    try:
        model, tokenizer = smollm2.load()
    except ImportError as error:
        pytest.skip(str(error))
    model.model.layers = model.model.layers[:layers]
    model.config = replace(model.config, num_hidden_layers=layers)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if name.endswith("lora_B.weight"):
            parameter.normal_(std=0.02)
    merged = adapted.merge_and_unload()
    run_files.write_weights(merged, tmp_path)
    smollm2.write_transformers_files(merged, tokenizer, tmp_path)
    again, same_tokenizer = load(tmp_path)
    text = chat.chat_text(CHATS[1])
    ids = tokenizer.encode(text).ids
    assert same_tokenizer.chat_text(CHATS[1]) == text
    assert same_tokenizer.encode(text).ids == ids and same_tokenizer.end_ids == (2,)
    assert torch.equal(again(torch.tensor([ids])), merged(torch.tensor([ids])))
    assert again.config == merged.config and again.tied
