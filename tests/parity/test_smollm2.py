"""The same on a real model: SmolLM2-135M's weights in our GPT and in transformers' Llama."""
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("tokenizers")

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minipeft import PeftModel
from minipeft.llm.smollm2 import find_gguf, load

from .peers import loads_quietly
from .test_hf_peft import LM, hf_gradients, our_gradients, stir

try:
    find_gguf()
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

OF = "`peft` on SmolLM2"
CONFIGS = {
    "LoRA": peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"],
                            **LM),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=5, **LM),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=5, **LM),
}


@pytest.fixture(scope="module")
def models():
    ours, tokenizer = load()
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**vars(ours.config)))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config=theirs.config)
    text = "The weather in Oslo is cold in winter, and people drink coffee."
    return ours, theirs.eval(), torch.tensor([tokenizer.encode(text).ids])


@torch.no_grad()
def test_the_real_weights_give_the_same_logits_and_tokens(models, compare):
    ours, theirs, ids = models
    # the same float32 operations in the same order on both sides
    compare("GPT: logits", "`transformers` on SmolLM2", ours(ids), theirs(ids).logits, 1e-4)
    tokens = theirs.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=-1,
                             pad_token_id=0)
    assert torch.equal(ours.generate(ids, 8), tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_hf_peft_computes_the_same_on_real_weights(name, models, tmp_path, compare):
    ours, theirs, ids = models
    adapted = stir(peft.get_peft_model(theirs, CONFIGS[name])).eval()
    adapted.save_pretrained(tmp_path)
    mine = loads_quietly(PeftModel.from_pretrained, ours, tmp_path, is_trainable=True)
    try:
        T = ids.shape[1]
        logits, expected = mine(ids), adapted(ids).logits[:, -T:]
        # 30 layers of float32: a last bit of a logit of size 20 is 2e-6, summed in another order
        compare(f"{name}: logits", OF, logits, expected, 1e-3)
        gradients = our_gradients(mine, logits.logsumexp(-1).mean())
        their_gradients = hf_gradients(adapted, expected.logsumexp(-1).mean())
        for key, gradient in their_gradients.items():
            scale = gradient.abs().max().item() or 1.0
            compare(f"{name}: gradients / largest", OF, gradients[key] / scale, gradient / scale,
                    1e-3)
    finally:
        mine.unload()
        if hasattr(adapted.base_model, "unload"):
            adapted.base_model.unload()
