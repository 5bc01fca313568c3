"""transformers' Trainer trains a PeftModel, and its checkpoints hold the adapter."""
import pytest

pytest.importorskip("accelerate")
hf = pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from minipeft import LoraConfig, PeftModel, get_peft_model

T = 10


class Rows(Dataset):
    """Columns of a language model, and one that no model wants."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        ids = [(i + t) % 61 for t in range(T)]
        return {"input_ids": ids, "attention_mask": [1] * T, "labels": ids, "junk": i}


def gpt2():
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(          # its head is tied
        vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def adapted():
    torch.manual_seed(1)
    return get_peft_model(gpt2(), LoraConfig(r=2, target_modules=["c_attn"]))


def trainer(model, folder, **more):
    arguments = hf.TrainingArguments(
        folder, max_steps=4, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True,
        disable_tqdm=True, label_names=["labels"])
    return hf.Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), **more)


class SaveAdapter(hf.TrainerCallback):
    """As on the page docs/differences.md."""

    def on_save(self, args, state, control, model=None, **kwargs):
        model.save_pretrained(f"{args.output_dir}/checkpoint-{state.global_step}")


def test_batches_arrive_and_a_checkpoint_holds_the_adapter_and_is_resumed(tmp_path):
    model = adapted()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    train = trainer(model, tmp_path / "a", callbacks=[SaveAdapter])
    assert train.evaluate()["eval_loss"] > 0
    assert train.train().training_loss > 0
    moved = {key for key, t in model.state_dict().items() if not torch.equal(t, before[key])}
    assert moved and all(key.startswith("adapters.default.") for key in moved)

    saved = load_file(tmp_path / "a" / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == before.keys()
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "a" / "checkpoint-4")
    for key in moved:
        assert torch.equal(saved[key], model.state_dict()[key])
        assert torch.equal(loaded.state_dict()[key], saved[key])

    again = adapted()
    trainer(again, tmp_path / "a").train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    for key in moved:
        torch.testing.assert_close(again.state_dict()[key], saved[key], rtol=0, atol=0)
