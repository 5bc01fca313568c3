"""A folder that is incomplete, damaged, hostile or another model's is refused by a file's name."""
import json
import struct

import pytest

pytest.importorskip("tokenizers")

import tiny_folder
import torch
from safetensors.torch import load_file
from tiny_folder import LLAMA

from minipeft import GPT, GPTConfig, LoraConfig, PeftModel, get_peft_model, quantize_model
from minipeft.gpt import RopeScaling
from minipeft.llm import checkpoint, hf_config, load
from minipeft.llm.chat_template import ChatTemplate

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND = (f"model-{n:05}-of-00002.safetensors" for n in (1, 2))
UP = "model.layers.1.mlp.up_proj.weight"


def edit(path, **changes) -> None:
    """Other entries in a JSON file; None takes one away."""
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))


@pytest.mark.parametrize("stored, dtype", [(torch.float16, torch.float32),
                                           (torch.bfloat16, torch.bfloat16)])
def test_every_tensor_stands_where_its_name_says_in_the_wanted_dtype(stored, dtype, tmp_path):
    tensors = tiny_folder.write(tmp_path, dtype=stored, shards=3)
    model, tokenizer = load(tmp_path, dtype)
    assert not model.training and model.state_dict().keys() == tensors.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype and torch.equal(tensor, tensors[name].to(dtype)), name
    assert tokenizer.end_ids == (1,) and tokenizer.get_vocab_size() <= 320
    text = tokenizer.chat_text([{"role": "user", "content": "the cat "}])
    assert text == "<|start|>user<|of|>the cat<|end|>\n<|start|>assistant<|of|>"
    assert tokenizer.decode(tokenizer.encode("the cat").ids) == "the cat"
    for path in tmp_path.glob("*.safetensors"):       # the model has its own memory
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(model.state_dict()[UP], tensors[UP].to(dtype))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_four_bit_is_the_quantized_model_bit_for_bit(kind, tmp_path):
    tiny_folder.write(tmp_path, LLAMA | {"model_type": kind, "architectures": None, "head_dim": 16,
                                         "tie_word_embeddings": True}, shards=2)
    wanted, (found, _) = quantize_model(load(tmp_path)[0]), load(tmp_path, four_bit=True)
    state = wanted.state_dict()
    assert state.keys() == found.state_dict().keys() and found.tied
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    trainable = {name for name, p in wanted.named_parameters() if p.requires_grad}
    assert {name for name, p in found.named_parameters() if p.requires_grad} == trainable


def test_one_weight_at_a_time_is_in_memory_before_it_is_quantized(tmp_path, monkeypatch):
    tiny_folder.write(tmp_path, shards=2)
    put, most = checkpoint.put, []

    def watched(model, name, tensor, four_bit, path):
        def whole():
            return [n for n, m in model.named_modules() if type(m) is torch.nn.Linear
                    and not m.weight.is_meta and n != "lm_head"]
        assert whole() == []                       # before, and after, none is left
        put(model, name, tensor, four_bit, path)
        most.append(whole())

    monkeypatch.setattr(checkpoint, "put", watched)
    assert load(tmp_path, four_bit=True) and most == [[]] * 21


def test_old_files_hold_what_is_computed_here_and_a_tied_head_may_stand_twice(tmp_path):
    tied = LLAMA | {"tie_word_embeddings": True}
    tensors = tiny_folder.write(tmp_path, tied)
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    for shards in (1, 2):                  # the head before and behind the embedding
        (tmp_path / WEIGHTS).unlink(missing_ok=True)
        tiny_folder.write_weights(tmp_path, more | head | tensors, shards)
        assert load(tmp_path)[0].tied
    head["lm_head.weight"][3, 4] += 1
    tiny_folder.write_weights(tmp_path, more | head | tensors, 2)
    with pytest.raises(ValueError, match=r"00001-of-00002.*lm_head.weight differs from model.emb"):
        load(tmp_path)


def test_end_tokens_are_the_generation_configs_and_otherwise_the_configs(tmp_path):
    tiny_folder.write(tmp_path)
    generation = tmp_path / "generation_config.json"
    for content, wanted in (({"eos_token_id": [2, 1]}, (2, 1)), ({"eos_token_id": 2}, (2,)),
                            ({"temperature": 0.6}, (1,)), ({"eos_token_id": None}, (1,))):
        generation.write_text(json.dumps(content))
        assert load(tmp_path)[1].end_ids == wanted
    for content in ([1, 320], -1, "1", [True], 1.0, [[1]], {"a": 1}):
        generation.write_text(json.dumps({"eos_token_id": content}))
        with pytest.raises(ValueError, match="generation_config.json: eos_token_id must be ids"):
            load(tmp_path)
    generation.unlink()
    edit(tmp_path / "config.json", eos_token_id=None)
    assert load(tmp_path)[1].end_ids == ()


def test_an_index_may_name_the_one_file_and_must_name_what_is_in_it(tmp_path):
    """As converters write it that always write an index."""
    tensors = tiny_folder.write(tmp_path)
    entries = {"weight_map": dict.fromkeys(tensors, WEIGHTS)}
    (tmp_path / INDEX).write_text(json.dumps(entries))
    state = load(tmp_path)[0].state_dict()
    assert all(torch.equal(state[name], t) for name, t in tensors.items())
    del entries["weight_map"][UP]
    (tmp_path / INDEX).write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=f"{WEIGHTS} holds {UP}, which {INDEX} does not name"):
        load(tmp_path)


# ---------------------------------------------------------------- bad folders


def resave(folder, file=WEIGHTS, **changes) -> None:
    """A shard with other tensors; None takes one away, "_" stands for "."."""
    tensors = load_file(folder / file)
    tensors = {k: v.clone() for k, v in tensors.items()} | changes
    tiny_folder.save_file({k: v for k, v in tensors.items() if v is not None}, folder / file)


def other_header(path, **changes) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    header[UP] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length:])


def other_index(folder, name=UP, file=None) -> None:
    entries = json.loads((folder / INDEX).read_text())
    entries["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(entries))


def unnamed_tensor(folder) -> None:
    entries = json.loads((folder / INDEX).read_text())
    entries["weight_map"].pop(UP)
    (folder / INDEX).write_text(json.dumps(entries))


def rename(folder, old, new) -> None:
    (folder / old).rename(folder / new)


def write(folder, name, content) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def larger_tokenizer(folder) -> None:
    tokenizer = tiny_folder.byte_level()
    tokenizer.add_tokens([f"word{i}" for i in range(60)])
    tokenizer.save(str(folder / "tokenizer.json"))


UP_F32 = torch.zeros(96, 64)
# case: (number of shards, what is done to the folder, the message)
BAD = {
    "no folder": (1, lambda f: rename(f, ".", "../gone"), "no model .* it must be smollm2, a f"),
    "no config": (1, lambda f: rename(f, "config.json", "c"), "holds no config.json"),
    "no weights": (1, lambda f: rename(f, WEIGHTS, "pytorch_model.bin"), "holds no model.safetens"),
    "shards, no index": (2, lambda f: rename(f, INDEX, "i"), f"holds no {INDEX}"),
    "one file and an index to no file": (1, lambda f: write(f, INDEX, json.dumps(
        {"weight_map": {UP: FIRST}})), "holds model.safetensors and m.* names other files"),
    "one file and an index": (2, lambda f: write(f, WEIGHTS, b""), "holds model.safetensors and m"),
    "missing shard": (2, lambda f: (f / SECOND).unlink(), f"{INDEX} names {SECOND}, not th"),
    "extra shard": (2, lambda f: write(f, "model-00003-of-00003.safetensors", b""),
                    f"{INDEX} does not name model-00003-of-00003.safetensors"),
    "tensor in no shard": (2, lambda f: other_index(f, "x", FIRST), f"{FIRST} does not hold x, wh"),
    "tensor elsewhere": (2, lambda f: other_index(f, UP, FIRST if UP in load_file(f / SECOND)
                                                  else SECOND), "does not hold|holds"),
    "tensor in no index": (2, unnamed_tensor, f"holds {UP}, which {INDEX} does not name"),
    "index to a path": (2, lambda f: other_index(f, UP, "../x.safetensors"), "weight_map must nam"),
    "index to nothing": (2, lambda f: other_index(f), "weight_map must name safetensors files bes"),
    "index to the config": (2, lambda f: other_index(f, UP, "config.json"), "weight_map must name"),
    "index without a map": (2, lambda f: write(f, INDEX, "{}"), f"{INDEX} lacks weight_map"),
    "empty index": (2, lambda f: write(f, INDEX, '{"weight_map": {}}'), f"{INDEX} names no tensor"),
    "index deep": (2, lambda f: write(f, INDEX, "[" * 10**5), f"{INDEX} is not valid JSON: nested"),
    "tensor missing": (1, lambda f: resave(f, **{UP: None}), f"{WEIGHTS} lacks 1 tensors .* {UP}"),
    "tensor unknown": (1, lambda f: resave(f, **{"model.layers.0.mlp.experts.0.w": UP_F32}),
                       f"{WEIGHTS} does not fit this model: 1 keys unexpected"),
    "biases": (1, lambda f: resave(f, **{"model.layers.0.self_attn.q_proj.bias": UP_F32[0]}),
               f"{WEIGHTS} does not fit this model: 1 keys unexpected, such as .*q_proj.bias"),
    "shape": (1, lambda f: resave(f, **{UP: UP_F32.T.contiguous()}), f"{UP} must have shape"),
    "flat": (1, lambda f: resave(f, **{UP: UP_F32.flatten()}), f"{UP} must have shape"),
    "integers": (1, lambda f: resave(f, **{UP: UP_F32.to(torch.int8)}), f"{UP} must .* got I8"),
    "float8": (1, lambda f: resave(f, **{UP: UP_F32.to(torch.float8_e4m3fn)}), f"{UP} must .* got"),
    "empty weights": (1, lambda f: write(f, WEIGHTS, b""), f"{WEIGHTS} is damaged"),
    "git-lfs pointer": (1, lambda f: write(f, WEIGHTS, "version https://git-lfs.github.com/spec/v"),
                        f"{WEIGHTS} is damaged"),
    "cut off": (1, lambda f: write(f, WEIGHTS, (f / WEIGHTS).read_bytes()[:-1]), "is damaged"),
    "huge shape": (1, lambda f: other_header(f / WEIGHTS, shape=[2**40, 2**20]), "is damaged"),
    "huge offsets": (1, lambda f: other_header(f / WEIGHTS, data_offsets=[0, 2**62]),
                     f"{WEIGHTS} is damaged"),
    "huge header": (1, lambda f: write(f, WEIGHTS, struct.pack("<Q", 2**62) + b"{"), "is damaged"),
    "many layers": (1, lambda f: edit(f / "config.json", num_hidden_layers=2**24),
                    "num_hidden_layers is 16777216, and the files hold"),
    "a layer more": (1, lambda f: edit(f / "config.json", num_hidden_layers=3), "lacks 9 tensors"),
    "wide": (1, lambda f: edit(f / "config.json", vocab_size=2**24, intermediate_size=2**24),
             r"must have shape \(16777216, 64\)"),
    "no tokenizer": (1, lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json, whic"),
    "tokenizer no JSON": (1, lambda f: write(f, "tokenizer.json", "{"), "tokenizer.json is no tok"),
    "tokenizer UTF-16": (1, lambda f: write(f, "tokenizer.json", "{}".encode("utf-16")),
                         "tokenizer.json is no tokenizer: it must be UTF-8"),
    "tokenizer deep": (1, lambda f: write(f, "tokenizer.json", "[" * 10**5), "tokenizer.json is n"),
    "tokenizer larger": (1, larger_tokenizer, "tokenizer.json: its tokens must have ids below the"),
    "added token": (1, lambda f: edit(f / "tokenizer_config.json", added_tokens_decoder={
        "5": {"content": "<|new|>"}}), "added_tokens_decoder says that 5 is '<|new|>', which toke"),
    "control token": (1, lambda f: edit(f / "tokenizer_config.json", bos_token=5), "bos_token mus"),
    "control token of old folders": (1, lambda f: write(
        f, "special_tokens_map.json", '{"eos_token": 5}'), "special_tokens_map.json: eos_token m"),
    "template no text": (1, lambda f: edit(f / "tokenizer_config.json", chat_template=5),
                         "chat_template must be a text, got 5"),
    "templates without names": (1, lambda f: edit(f / "tokenizer_config.json", chat_template=["x"]),
                                "chat_template must be an object, got 'x'"),
    "template broken": (1, lambda f: write(f, "chat_template.jinja", "{% for %}"),
                        "chat_template.jinja is no template that Jinja reads: Expected an express"),
    "template UTF-16": (1, lambda f: write(f, "chat_template.jinja", "x".encode("utf-16")),
                        "chat_template.jinja is no template: it must be UTF-8"),
    "window": (1, lambda f: edit(f / "config.json", model_type="mistral", sliding_window=127,
                                 architectures=["MistralForCausalLM"]),
               "sliding_window must be null, or not below max_position_embeddings 128, got 127"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_in_one_line_that_names_the_file(case, tmp_path):
    shards, damage, message = BAD[case]
    folder = tmp_path / "model"
    tiny_folder.write(folder, shards=shards)
    damage(folder)
    with pytest.raises((ValueError, OSError), match=message) as error:
        load(folder)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_weight_that_is_not_finite_is_not_quantized(tmp_path):
    tiny_folder.write(tmp_path)
    resave(tmp_path, **{UP: UP_F32 / 0})
    load(tmp_path)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: {UP} cannot be quantized: weight must"):
        load(tmp_path, four_bit=True)


def test_a_folder_without_a_template_says_so_when_a_conversation_comes(tmp_path):
    tiny_folder.write(tmp_path, template=None)
    _, tokenizer = load(tmp_path)
    with pytest.raises(ValueError, match="holds no chat template, neither chat_template.jinja nor"):
        tokenizer.chat_text([{"role": "user", "content": "a"}])


# ---------------------------------------------------------------- templates

STATE = "{% set ns = namespace(a='0123456789') %}{% for i in range(99) %}"
HOSTILE = {
    "two loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                  "rounds of loops and calls"),
    "loops over what is written in it": (
        f"{{% for i in {list(range(60))} %}}" * 4 + "{% endfor %}" * 4, "rounds of loops"),
    "long range": ("{% for i in range(10 ** 12) %}{% endfor %}", "Range too big"),
    "two calls each": ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
                       "{% endmacro %}{{ f(60) }}", "rounds of loops and calls"),
    "a call of itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "much text": ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than"),
    "a product": ("{{ 'x' * 10 ** 10 }}", "multiplies by 10000000000"),
    "a product of products": ("{{ ('x' * 10 ** 6) * 10 ** 6 }}", "multiplies by 1000000"),
    "a power": ("{{ 9 ** 9999 ** 9 }}", "raises to the power"),
    "sums": (STATE + "{% set ns.a = ns.a + ns.a %}{% endfor %}", "a text or list of more than"),
    "joins": (STATE + "{% set ns.a = ns.a ~ ns.a %}{% endfor %}", "a text or list of more than"),
    "replacements": (STATE + "{% set ns.a = ns.a.replace('1', '1111') %}{% endfor %}",
                     "a text or list of more than"),
    "a class": ("{{ ''.__class__.__mro__ }}", "what the sandbox forbids: access to attribute"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('true') }}", "what the sandbox forbids"),
    "a namespace's class": ("{% set ns = namespace(__class__=1) %}", "begins with an underscore"),
    "a change": ("{{ messages.append(1) }}", "what the sandbox forbids"),
    "an import": ("{% import 'os' as os %}", "no loader"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "its own words": ("{{ raise_exception('roles must alternate') }}", ": roles must alternate"),
    "no such variable": ("{{ nobody.name }}", "'nobody' is undefined"),
    "no such filter": ("{{ 1 | nothing }}", "No filter named 'nothing'"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "no loop": ("{% for x in 5 %}{% endfor %}", "iterable"),
    "many brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "no template that Jinja read"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_ends_in_one_line(case):
    source, message = HOSTILE[case]
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match=message) as error:
        ChatTemplate(source, "a.jinja").render(messages=messages)
    assert "\n" not in str(error.value) and str(error.value).startswith("a.jinja ")
    assert messages == [{"role": "user", "content": "a"}]


def test_a_template_has_its_steps_anew_for_every_conversation():
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}{{ loop is defined }}", "a")
    assert [template.render() for _ in range(4)] == ["False"] * 4


# ---------------------------------------------------------------- config.json


def test_a_config_is_written_as_it_is_read(tmp_path):
    base = dict(tiny_folder.SIZES)
    scaled = (None, RopeScaling("linear", 3.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 64))
    for scaling in scaled:
        for more, kind in ((dict(), "llama"), (dict(head_dim=32), "llama"),
                           (dict(biases=("q_proj", "k_proj", "v_proj", "o_proj")), "llama"),
                           (dict(biases=("q_proj", "k_proj", "v_proj")), "qwen2"),
                           (dict(qk_norm=True, head_dim=8), "qwen3")):
            config = GPTConfig(**base, **more, rope_scaling=scaling, tie_word_embeddings=True)
            entries = hf_config.entries_of(config)
            assert entries["model_type"] == kind
            (tmp_path / "config.json").write_text(json.dumps(entries))
            assert hf_config.read(tmp_path / "config.json").config == config
    for more in (dict(biases=("q_proj",)),
                 dict(qk_norm=True, biases=("q_proj", "k_proj", "v_proj"))):
        with pytest.raises(ValueError, match="no class of transformers has biases on q_proj"):
            hf_config.entries_of(GPTConfig(**base, **more))


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ODD = {
    **{f"rope_scaling {value}": ({"rope_scaling": value}, message) for value, message in (
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling: rope_type must be one of .* 'dynamic'"),
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type must be one of default, linear, llama3"),
        ({"rope_type": ["linear"]}, "rope_type must be one of"), ("linear", "rope_scaling must be"),
        ({"rope_type": "linear"}, "rope_scaling lacks factor"),
        ({"rope_type": "linear", "factor": 0}, "factor must be a positive, finite number, got 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be a positive, finite number"),
        ({"rope_type": "linear", "factor": 2.0, "x": 1}, "rope_scaling: x is 1, and the type line"),
        ({"rope_type": "default", "mrope_section": [1]}, "mrope_section is"),
        ({"type": "linear", "rope_type": "llama3", "factor": 2.0}, "rope_type must be one of"),
        ({**ROPE, "low_freq_factor": 4.0}, "low_freq_factor must be below high_freq_factor"),
        ({**ROPE, "high_freq_factor": None}, "lacks high_freq_factor"),
        ({**ROPE, "original_max_position_embeddings": 0.5}, "original_max_position_embeddings mus"),
        ({**ROPE, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({**ROPE, "rope_theta": 5.0}, "rope_theta must be the same in rope_scaling and beside it"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention is"))},
    "both": ({"rope_scaling": ROPE, "rope_parameters": {"rope_type": "default"}}, "say different"),
    **{f"{key} {value}": ({key: value}, key) for key, value in (
        ("hidden_act", "gelu"), ("mlp_bias", True), ("attention_bias", "true"),
        ("is_causal", False), ("num_local_experts", 8), ("sliding_window", 64),
        ("attn_logit_softcapping", 30.0),
        ("final_logit_softcapping", 30.0), ("partial_rotary_factor", 0.5), ("head_dim", 7),
        ("rope_interleaved", True), ("auto_map", {"AutoModel": "x.py"}),
        ("attention_chunk_size", 8),
        ("quantization_config", {"quant_method": "gptq"}), ("original_max_position_embeddings", 8),
        ("layer_types", ["sliding_attention"] * 2), ("use_bidirectional_attention", True))},
    "qwen3 without head_dim": ({"model_type": "qwen3", "head_dim": None,
                                "architectures": ["Qwen3ForCausalLM"]}, "head_dim must be a whole"),
    "qwen2's window": ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32,
                        "architectures": ["Qwen2ForCausalLM"]}, "sliding_window must be null"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_gpt_does_not_compute_is_refused_by_the_field(case, tmp_path):
    changes, message = ODD[case]
    tiny_folder.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("other", [320 + 8, 320 - 8])
def test_an_adapter_for_another_vocabulary_is_told_so(other, tmp_path):
    """LoRA on the head; and a file of HF PEFT's that brings the enlarged embedding along."""
    tiny_folder.write(tmp_path / "model")
    model = load(tmp_path / "model")[0]
    theirs = GPT(GPTConfig(**tiny_folder.SIZES | {"vocab_size": other}))
    get_peft_model(theirs, LoraConfig(4, target_modules=["lm_head"])).save_pretrained(tmp_path)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"lora_B.weight must have shape \(320, 4\), got "
                                         rf"\({other}, 4\); is the vocabulary, or the model, ano"):
        PeftModel.from_pretrained(model, tmp_path)
    get_peft_model(model, LoraConfig(4)).save_pretrained(tmp_path)
    resave(tmp_path, "adapter_model.safetensors",
           **{"base_model.model.model.embed_tokens.weight": torch.zeros(other, 64)})
    model = load(tmp_path / "model")[0]
    with pytest.raises(ValueError, match=f"for a vocabulary of {other} tokens"):
        PeftModel.from_pretrained(model, tmp_path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
