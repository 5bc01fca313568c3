"""A model of one's own, as the README types it: two families from folders, fine-tuned, resumed,
asked, merged, and opened by transformers and HF PEFT."""
import json
import re
from pathlib import Path

import pytest
import tiny_folder
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
from minipeft.__main__ import main
from minipeft.llm import load
from minipeft.llm.run_files import load_trained

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
    return main(re.findall(r'(?<=")[^"]+(?=")|[^\s"]+', line))


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
    library = transformers.AutoTokenizer.from_pretrained("runs/mine_merged")
    asked = library.apply_chat_template([{"role": "user", "content": "Wake me at 7"}],
                                        add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)
    new = theirs.generate(**asked, max_new_tokens=100, do_sample=False)[0, len(asked.input_ids[0]):]
    assert said == tokenizer.decode(new.tolist()).splitlines()[0]
