"""Every method on SmolLM2 and tool calls, judged fairly: a study of hours that goes on where it
stopped.
"""
import itertools
import json
import math
import re
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tool_calls import DATA, answers, docstrings, greedily_right
from torch import Tensor, nn

from minipeft.lab.compare import machine
from minipeft.lab.tool_calls import KINDS, Job
from minipeft.llm.chat import END, Example, batch_plan, collate, encode_example, read_jsonl
from minipeft.llm.finetune import validate
from minipeft.llm.shared_prefix import shared_logits
from minipeft.llm.smollm2 import load
from minipeft.measure import nbytes, weight_bytes
from minipeft.peft_model import count_parameters
from minipeft.recipes import RECIPES, adapt
from minipeft.train import TrainConfig, adamw, train_step

BATCH = 8                        # examples a step
WATCHED = (10, 20, 40, 60, 90, 120, 150, 180, 240, 300)      # and after the last step


# A run


def run(job: Job) -> dict:
    """What came out; where the loss or a weight stopped being finite, loss is None."""
    model, tokenizer = load()
    torch.manual_seed(job.seed)
    model = adapt(model, job.method, RECIPES[job.method].llm_size, getattr(torch, job.dtype))
    trained = [p for p in model.parameters() if p.requires_grad]
    found = dict.fromkeys(("loss", "validation", "docstrings", "test", "test_loss", "errors",
                           "answers"))
    found |= dict(trainable=count_parameters(model)[0], machine=machine(), seconds_per_step=None,
                  bytes=dict(weights=weight_bytes(model), training=3 * nbytes(trained)))
    watch = Watch(tokenizer, requests("validation", job))
    try:
        found |= train(model, job, training_set(job, tokenizer), watch)
        docs = validate(model, docstrings(tokenizer), 1)["loss"]
    except FloatingPointError:
        return found | dict(curve=watch.curve)
    last = watch.curve[-1]
    if not (math.isfinite(last["loss"]) and math.isfinite(docs)):
        return found | dict(curve=watch.curve[:-1])
    found |= dict(curve=watch.curve, loss=last["loss"], validation=watch.right, docstrings=docs)
    return found | (tested(model.eval(), tokenizer, job) if job.split == "report" else {})


def requests(name: str, job: Job) -> list[list[dict]]:
    return read_jsonl(DATA / f"{name}.jsonl")[:job.requests]


def encoded(conversations: list, tokenizer) -> list[Example]:
    return [encode_example(messages, lambda t: tokenizer.encode(t).ids)
            for messages in conversations]


def training_set(job: Job, tokenizer) -> list[Example]:
    """As many examples as the job says, another part of the set for each seed, tools in turn."""
    whole = read_jsonl(DATA / "train.jsonl")
    start = job.seed * job.examples % len(whole)
    chosen = (whole + whole)[start:start + job.examples]
    ordinary = read_jsonl(DATA / "ordinary.jsonl")[:job.ordinary] if job.ordinary else []
    return encoded(chosen + ordinary, tokenizer)


def train(model: nn.Module, job: Job, training: list[Example], watch: "Watch") -> dict:
    """AdamW, as `minipeft finetune` does it; the watch looks at the model on the way."""
    config = TrainConfig(job.lr) if job.steps else None
    optimizer = adamw([p for p in model.parameters() if p.requires_grad], config) if config else None
    plan, seconds = batch_plan([len(ids) for ids, _ in training], BATCH, job.seed), []
    for step, chosen in enumerate(itertools.islice(plan, job.steps)):
        model.train()
        start = time.perf_counter()
        train_step(model, [collate([training[i] for i in chosen])], optimizer, config, step,
                   job.steps, shared_logits)
        seconds.append(time.perf_counter() - start)
        if step + 1 in WATCHED and step + 1 < job.steps:
            watch(model.eval(), step + 1)
    watch(model.eval(), job.steps)
    return dict(seconds_per_step=statistics.median(seconds) if seconds else None)


class Watch:
    """The learning curve on the validation requests; `right`: at the last look, of each of them."""

    def __init__(self, tokenizer, conversations: list):
        self.examples = encoded(conversations, tokenizer)
        self.kinds = [token_kinds(messages[-1]["content"], tokenizer)
                      for messages in conversations]
        self.curve, self.right = [], []

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> None:
        total, count, rows = 0.0, 0, []
        for start in range(0, len(self.examples), BATCH):
            logits, targets = shared_logits(model, collate(self.examples[start:start + BATCH]))
            total += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            count += len(targets)
            rows += by_kind(logits.argmax(-1) == targets, self.kinds[start:start + BATCH])
        self.right = [int(all(row.values())) for row in rows]
        self.curve.append({"step": step, "loss": total / count,
                           "exact_match": statistics.mean(self.right),
                           **{kind: statistics.mean(row[kind] for row in rows) for kind in KINDS}})


def by_kind(hits: Tensor, kinds: list[list[str]]) -> list[dict[str, bool]]:
    """Of each answer, whether all its tokens of a kind are right; hits (N,): of all its tokens, one
    answer after the other."""
    left = iter(hits.tolist())
    found = []
    for of in kinds:
        wrong = {kind for kind, hit in zip(of, left) if not hit}
        found.append({kind: kind not in wrong for kind in KINDS})
    return found


def token_kinds(answer: str, tokenizer) -> list[str]:
    """Of each token of a call and its END: form (braces, quotes, keys), name (of the tool), values
    (copied), stop."""
    kinds = ["form"] * len(answer) + ["stop"] * len(END)
    for number, text in enumerate(re.finditer(r'"([^"]*)"', answer)):     # key, value, key, ...
        if number % 2:
            kind = "name" if number == 1 else "values"
            kinds[text.start(1):text.end(1)] = [kind] * len(text[1])
    return [kinds[end - 1] for _, end in tokenizer.encode(answer + END).offsets]


def tested(model: nn.Module, tokenizer, job: Job) -> dict:
    """The test requests, one by one, the errors, and what the ordinary questions get."""
    asked = requests("test", job)
    examples = encoded(asked, tokenizer)
    right = greedily_right(model, examples)
    said = iter(answers(model, tokenizer, [m[:1] for m, r in zip(asked, right) if not r], iter))
    got = [m[1]["content"] if sure else next(said) for m, sure in zip(asked, right)]
    errors = [{"request": i, "kind": error_kind(m[1]["content"], text), "got": text}
              for i, (m, text) in enumerate(zip(asked, got)) if text != m[1]["content"]]
    wrong = {error["request"] for error in errors}
    questions = [m[:1] for m in read_jsonl(DATA / "questions.jsonl")] if (DATA / "questions.jsonl").exists() else []
    return dict(test=[int(i not in wrong) for i in range(len(asked))], errors=errors,
                test_loss=validate(model, examples, BATCH)["loss"],
                answers=answers(model, tokenizer, questions, iter))


def error_kind(wanted: str, got: str) -> str:
    """What is wrong first: form, no JSON object or other keys; stop, more text after the call; name,
    another tool; values."""
    try:
        call, end = json.JSONDecoder().raw_decode(got)
    except ValueError:
        return "form"
    if not isinstance(call, dict) or "tool" not in call:
        return "form"
    if got[end:]:
        return "stop"
    right = json.loads(wanted)
    if call["tool"] != right["tool"]:
        return "name"
    return "form" if list(call) != list(right) or call == right else "values"
