"""What all rows begin with is computed once: the same loss and gradients, for every method."""
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL

from minipeft import GPT
from minipeft.llm.finetune import Run, RunRecipe, Schedule
from minipeft.llm.shared_prefix import shared_length, shared_logits
from minipeft.recipes import RECIPES
from minipeft.train import IGNORE, label_positions, labelled_logits

SHARED = 5


def batch(rows: int = 3, shared: int = SHARED) -> tuple[torch.Tensor, torch.Tensor]:
    """`shared` equal tokens, two that differ, an answer of three; the last row is shorter."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SMALL.vocab_size, (rows, shared + 5), generator=generator)
    ids[:, :shared] = ids[0, :shared].clone()
    ids[:, shared] = torch.arange(rows)          # no further position is alike by chance
    labels = ids.clone()
    labels[:, :-3] = IGNORE
    ids[-1, -1], labels[-1, -1] = 0, IGNORE
    return ids, labels


def seen_positions(model: GPT, of_batch) -> list[tuple[int, ...]]:
    """The shapes of ids that the embedding is asked for in one shared_logits."""
    shapes, embedding = [], model.model.embed_tokens
    hook = embedding.register_forward_hook(lambda m, args, out: shapes.append(args[0].shape))
    shared_logits(model, of_batch)
    hook.remove()
    return [tuple(shape) for shape in shapes]


@pytest.mark.parametrize("method", RECIPES)
def test_logits_and_gradients_are_those_of_the_whole_batch(method):
    torch.manual_seed(0)
    size = None if method == "full" else 2
    model = RunRecipe(method, size, 1e-3).adapt(GPT(SMALL)).double()
    with torch.no_grad():                         # B = 0 would leave nothing to compare
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, dtype=p.dtype) * 0.1)
    results = []
    for logits_of in (labelled_logits, shared_logits):
        logits, targets = logits_of(model, batch())
        F.cross_entropy(logits, targets).backward()
        results.append([logits.detach()] + [p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    for whole, once in zip(*results, strict=True):
        torch.testing.assert_close(once, whole, rtol=1e-6, atol=1e-9)   # float64; NF4's are float32


def test_the_shared_tokens_are_computed_in_the_first_row_only():
    assert seen_positions(GPT(SMALL), batch()) == [(1, SHARED + 5), (2, 5)]


def test_what_is_labelled_or_predicts_a_label_is_not_shared():
    ids = torch.arange(6).expand(4, 6)            # the rows are alike from end to end
    labels = ids.clone()
    labels[:, :3] = IGNORE
    assert shared_length(ids, label_positions(labels)[0]) == 2      # position 2 predicts label 3
    labels[1, 1] = ids[1, 1]
    assert shared_length(ids, label_positions(labels)[0]) == 0


def test_one_row_or_nothing_in_common_is_an_ordinary_forward_pass():
    assert seen_positions(GPT(SMALL), batch(rows=1)) == [(1, SHARED + 5)]
    assert seen_positions(GPT(SMALL), batch(shared=0)) == [(3, 5)]


def test_a_run_that_computes_activations_again_takes_the_same_step(tmp_path):
    losses = []
    for recompute in (False, True):
        torch.manual_seed(0)
        recipe = RunRecipe("lora", 2, 1e-2, recompute=recompute)
        run = Run(recipe.adapt(GPT(SMALL)), recipe, Schedule(steps=2), tmp_path)
        for _ in range(2):
            run.step([(ids, labels) for ids, labels in zip(*(t.tolist() for t in batch()))])
        losses.append(run.history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)      # float32 sums in another order
