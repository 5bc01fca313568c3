"""LoRA, prompt tuning and prefix tuning are HuggingFace PEFT's: function, gradients, files."""
import json
import math

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
from safetensors.torch import load_file

from minipeft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from minipeft.gpt import pad_left
from minipeft.train import TrainConfig, train

from .peers import IDS, MODELS, UNEQUAL, cross_entropy, loads_quietly, pair, to_dtype, twins

AGAINST = "`peft`"
T = IDS.shape[1]
LM = dict(task_type="CAUSAL_LM")
# y + s B A x is rounded once here and three times there: an ulp or two of logits near 4, 5e-7 each
SAME = 1e-5
TENSORS = "adapter_model.safetensors"

THEIRS = {
    "LoRA": peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], **LM),
    "LoRA, all-linear": peft.LoraConfig(r=4, target_modules="all-linear", **LM),
    "rsLoRA": peft.LoraConfig(r=4, use_rslora=True, lora_alpha=6,
                              target_modules=["o_proj", "mlp.down_proj"], **LM),
    "LoRA, dropout": peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=["k_proj", "up_proj"]),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=5, **LM),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=5, **LM),
    "prefix tuning, projected": peft.PrefixTuningConfig(
        num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=24, **LM),
}
OURS = {
    "LoRA": LoraConfig(r=4, lora_alpha=6),
    "LoRA, all-linear": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=True),
    "rsLoRA": LoraConfig(r=4, use_rslora=True, lora_alpha=6,
                         target_modules=["o_proj", "mlp.down_proj"]),
    "LoRA, dropout": LoraConfig(r=4, lora_dropout=0.5, target_modules={"k_proj", "up_proj"}),
    "LoRA, one layer": LoraConfig(r=4, target_modules=["layers.1.self_attn.q_proj"]),
    "prompt tuning": PromptTuningConfig(5),
    "prompt tuning, text": PromptTuningConfig(5, "TEXT", "a b", lambda text: [7, 9]),
    "prefix tuning": PrefixTuningConfig(5),
    "prefix tuning, tokens": PrefixTuningConfig(5, prefix_init="SAMPLE_VOCAB"),
    "prefix tuning, projected": PrefixTuningConfig(5, True, 24),
}


@pytest.fixture(params=["heads, untied", "grouped heads, tied"])
def models(request):
    return pair(MODELS[request.param])


def stir(model):
    """Move every trainable tensor off its start (B = 0 would hide half of LoRA)."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.2)
    return model


def hf_adapted(llama, name):
    return stir(peft.get_peft_model(llama, THEIRS[name])).eval()


def hf_logits(model):
    """HF prompt tuning returns P + T positions; the text's are the last T."""
    return model(IDS).logits[:, -T:]


def hf_gradients(model, loss):
    """By the names of HF's files, which are ours."""
    loss.backward()
    if hasattr(model, "prompt_encoder"):
        return {"prompt_embeddings": model.prompt_encoder.default.embedding.weight.grad}
    return {name.replace(".default", ""): p.grad for name, p in model.named_parameters()
            if p.requires_grad}


def our_gradients(model, loss):
    (adapters,) = model.adapter_sets.values()
    if model.peft_config["default"].peft_type == "LORA":
        loss.backward()
        return {f"base_model.model.{path}.{name}": p.grad for path, adapter in adapters.items()
                for name, p in adapter.own_state().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]      # one (P, ...) a layer
    return {"prompt_embeddings": torch.cat(torch.autograd.grad(loss, parameters), dim=1)}


@pytest.mark.parametrize("name", [n for n in THEIRS if "projected" not in n])
def test_an_adapter_of_hf_peft_computes_the_same_here(name, models, tmp_path, compare):
    gpt, llama = models
    theirs = hf_adapted(llama, name)
    theirs.save_pretrained(tmp_path)
    ours = loads_quietly(PeftModel.from_pretrained, gpt, tmp_path, is_trainable=True)
    logits, their_logits = ours(IDS), hf_logits(theirs)
    compare(f"{name}: their file here, logits", AGAINST, logits, their_logits, SAME)
    with ours.disable_adapter():
        assert (ours(IDS) - logits).abs().max() > 0.01, "the adapter does something"
    gradients = our_gradients(ours, cross_entropy(ours(IDS)))
    expected = hf_gradients(theirs, cross_entropy(hf_logits(theirs)))
    assert gradients.keys() == expected.keys()
    for key in expected:
        compare(f"{name}: gradients", AGAINST, gradients[key], expected[key], SAME)


def test_a_projected_prefix_computes_and_learns_the_same(models, tmp_path, compare):
    name = "prefix tuning, projected"
    gpt, llama = models
    theirs, ours = hf_adapted(llama, name), get_peft_model(gpt, OURS[name]).eval()
    encoder, L = theirs.prompt_encoder.default, gpt.config.num_hidden_layers
    prefixes = [a.prefix for a in ours.adapter_sets["default"].values()]
    trunk = prefixes[0].trunk
    with torch.no_grad():                    # their last Linear makes all layers: L pieces of ours
        trunk.embedding.weight.copy_(encoder.embedding.weight)
        trunk.linear.load_state_dict(encoder.transform[0].state_dict())
        for prefix, W, b in zip(prefixes, encoder.transform[2].weight.chunk(L),
                                encoder.transform[2].bias.chunk(L)):
            prefix.linear.weight.copy_(W)
            prefix.linear.bias.copy_(b)
    compare(f"{name}: logits", AGAINST, ours(IDS), hf_logits(theirs), SAME)
    cross_entropy(ours(IDS)).backward()
    cross_entropy(hf_logits(theirs)).backward()
    for mine, their in ((trunk.embedding.weight, encoder.embedding.weight),
                        (trunk.linear.weight, encoder.transform[0].weight)):
        compare(f"{name}: gradients", AGAINST, mine.grad, their.grad, SAME)
    theirs.save_pretrained(tmp_path)         # both sides fold the MLP away
    ours.save_pretrained(tmp_path / "ours")
    compare(f"{name}: file", AGAINST, *(load_file(folder / TENSORS)["prompt_embeddings"]
                                        for folder in (tmp_path / "ours", tmp_path)), SAME)
    loaded = loads_quietly(PeftModel.from_pretrained, ours.unload(), tmp_path)
    compare(f"{name}: their file here, logits", AGAINST, loaded(IDS), hf_logits(theirs), SAME)


@pytest.mark.parametrize("name", OURS)
def test_an_adapter_saved_here_loads_in_hf_peft(name, models, tmp_path, compare):
    gpt, llama = models
    ours = stir(get_peft_model(gpt, OURS[name])).eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs = loads_quietly(peft.PeftModel.from_pretrained, llama, tmp_path / "ours")
    compare(f"{name}: our file there, logits", AGAINST, ours(IDS), hf_logits(theirs), SAME)
    theirs.save_pretrained(tmp_path / "theirs")      # ... and what they save again is our file
    again, file = (load_file(tmp_path / folder / TENSORS) for folder in ("theirs", "ours"))
    assert again.keys() == file.keys()
    assert all(torch.equal(again[key], file[key]) for key in file)
    if "prompt" in name:
        return      # HF prompt tuning feeds embeddings; what it returns is not ids of the text
    theirs.generation_config.eos_token_id = None     # LlamaConfig's default is 2
    tokens = theirs.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    compare(f"{name}: our file there, greedy tokens", AGAINST, ours.generate(IDS, 6), tokens, 0)
    batch = pad_left(UNEQUAL)
    tokens = theirs.generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=0)
    compare(f"{name}: our file there, greedy tokens of a padded batch", AGAINST,
            ours.generate(**batch, max_new_tokens=6), tokens, 0)


def test_every_adapter_of_a_folder_loads_in_hf_peft(models, tmp_path, compare):
    gpt, llama = models
    ours = get_peft_model(gpt, OURS["LoRA"]).eval()
    ours.add_adapter("second", OURS["rsLoRA"])
    ours.set_adapter("second")
    stir(ours).save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(llama, tmp_path)
    theirs.load_adapter(tmp_path / "second", "second")
    for name in ("default", "second"):
        ours.set_adapter(name)
        theirs.set_adapter(name)
        compare("several adapters: logits", AGAINST, ours(IDS), hf_logits(theirs), SAME)


def test_dropout_with_the_same_mask_computes_the_same(models, tmp_path, compare):
    name = "LoRA, dropout"
    gpt, llama = models
    theirs = hf_adapted(llama, name).train()
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(gpt, tmp_path, is_trainable=True).train()
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        logits.append(model(IDS))
    compare(f"{name}: logits with the same mask", AGAINST, logits[0], logits[1].logits, SAME)
    with torch.no_grad():
        assert not torch.equal(ours(IDS), logits[0]), "another mask, other logits"
    gradients = our_gradients(ours, cross_entropy(logits[0]))
    expected = hf_gradients(theirs, cross_entropy(logits[1].logits))
    for key in expected:
        compare(f"{name}: gradients with the same mask", AGAINST, gradients[key], expected[key],
                SAME)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["LoRA", "rsLoRA", "LoRA, all-linear"])
def test_a_merged_model_has_their_weights(name, dtype, models, tmp_path, compare):
    gpt, llama = to_dtype(*models, dtype)
    theirs = hf_adapted(llama, name)
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(gpt, tmp_path)
    label = str(dtype).removeprefix("torch.")
    # bfloat16 keeps 8 bits: logits of size 4 have steps of 1/32. They round inside attention, which
    # is float32 here on a CPU, so that up to three steps lie between the two
    compare(f"{name}: logits on a {label} base", AGAINST, ours(IDS).float(),
            hf_logits(theirs).float(), SAME if dtype == torch.float32 else 3 / 32)
    assert {p.dtype for a in ours.adapter_sets["default"].values()
            for p in a.own_state().values()} == {torch.float32}
    merged, expected = ours.merge_and_unload().state_dict(), theirs.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for key in expected:
        # s multiplies B here and B A there: 1 ulp of the update; in bfloat16, of a weight of size 1
        compare(f"{name}: merged weights, {label}", AGAINST, merged[key].float(),
                expected[key].float(), SAME if dtype == torch.float32 else 2 ** -8)


def hf_train(model, config, steps):
    """A plain loop over HuggingFace's own loss; AdamW and the learning rates are config's."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad],
                                  lr=config.lr, betas=config.betas, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.lr_at(step, steps)
        loss = model(input_ids=IDS, labels=without_the_first_token(IDS)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def without_the_first_token(ids):
    """Labels. In HF prompt tuning the last soft vector also predicts the first token of the text;
    here, as with every other method, a text's first token is given, not predicted."""
    return torch.cat([torch.full_like(ids[:, :1], -100), ids[:, 1:]], dim=1)


@pytest.mark.parametrize("name", ["LoRA", "prompt tuning", "prefix tuning"])
def test_fifty_steps_give_their_losses(name, models, tmp_path, compare):
    gpt, llama = models
    theirs = hf_adapted(llama, name)
    theirs.save_pretrained(tmp_path)
    ours = PeftModel.from_pretrained(gpt, tmp_path, is_trainable=True)
    config = TrainConfig(lr=1e-2, warmup_steps=5)
    losses = train(ours, iter(lambda: (IDS, IDS), None), config, 50).loss
    expected = hf_train(theirs, config, 50)
    assert losses[-1] < losses[0] - 0.2
    # AdamW divides by sqrt(v): rounding in tiny gradients comes back at full size, step after step
    compare(f"{name}: 50 losses of training", AGAINST, torch.tensor(losses),
            torch.tensor(expected), 1e-4)


def test_init_true_draws_between_the_bounds_of_theirs():
    gpt, llama = pair(MODELS["heads, untied"])
    for model in (get_peft_model(gpt, LoraConfig(init_lora_weights=True)),
                  peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))):
        A = torch.stack([p for name, p in model.named_parameters() if "lora_A" in name])
        assert A.shape == (4, 8, 32)
        largest = A.abs().max() * math.sqrt(32)      # U(-1, 1) / sqrt(in)
        assert 0.98 < largest <= 1                   # below 0.98: 0.98^1024 = 1e-9


def test_the_printed_line_is_theirs(models, capsys):
    gpt, llama = models
    get_peft_model(gpt, OURS["LoRA"]).print_trainable_parameters()
    peft.get_peft_model(llama, THEIRS["LoRA"]).print_trainable_parameters()
    mine, their = capsys.readouterr().out.splitlines()
    assert mine == their


@pytest.mark.parametrize("name", ["LoRA", "LoRA, all-linear", "prompt tuning", "prefix tuning",
                                  "prefix tuning, projected"])
def test_the_counts_are_theirs(name, models):
    gpt, llama = models
    assert (get_peft_model(gpt, OURS[name]).get_nb_trainable_parameters()
            == peft.get_peft_model(llama, THEIRS[name]).get_nb_trainable_parameters())


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_how_an_adapter_began_does_not_matter(init, tmp_path, compare):
    gpt, llama = pair(MODELS["heads, untied"])
    theirs = stir(peft.get_peft_model(llama, peft.LoraConfig(
        r=4, init_lora_weights=init, target_modules=["q_proj"]))).eval()
    theirs.save_pretrained(tmp_path)
    ours = loads_quietly(PeftModel.from_pretrained, gpt, tmp_path)
    compare("LoRA of any harmless init: logits", AGAINST, ours(IDS), hf_logits(theirs), SAME)


REFUSED = {
    "use_dora": dict(use_dora=True),
    "alpha_pattern": dict(alpha_pattern={"v_proj": 32}),
    "rank_pattern": dict(rank_pattern={"v_proj": 2}),
    "layers_to_transform": dict(layers_to_transform=0),
    "exclude_modules": dict(exclude_modules=["layers.0.self_attn.q_proj"]),
    "modules_to_save": dict(modules_to_save=["lm_head"]),
    "lora_bias": dict(lora_bias=True),
    "init_lora_weights='pissa'": dict(init_lora_weights="pissa"),
    "init_lora_weights='olora'": dict(init_lora_weights="olora"),
    "target_parameters": dict(target_parameters=["q_proj.weight"], target_modules=["v_proj"]),
    "bias='lora_only'": dict(bias="lora_only"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_load_with_another_function_is_refused(key, tmp_path):
    gpt, llama = pair(MODELS["heads, untied"])
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **REFUSED[key]})
    peft.get_peft_model(llama, config).save_pretrained(tmp_path)
    before = gpt(IDS)
    with pytest.raises(ValueError, match=key):
        PeftModel.from_pretrained(gpt, tmp_path)
    assert torch.equal(gpt(IDS), before)


def test_a_file_without_a_task_type_would_be_ignored_there(tmp_path):
    """Why prompt and prefix files always say CAUSAL_LM: HF PEFT drops the prefix without a word."""
    gpt, llama = pair(MODELS["heads, untied"])
    get_peft_model(gpt, PrefixTuningConfig(5)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
    one, other = twins(llama)
    ignored = peft.PeftModel.from_pretrained(one, tmp_path)
    assert torch.equal(ignored(IDS).logits, other(IDS).logits)
