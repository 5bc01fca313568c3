"""SmolLM2 on tool calls, by every method under one protocol: a study that goes on where it stopped.

    python benchmarks/tool_calls_study.py                run what is missing, print what came out
    python benchmarks/tool_calls_study.py report         print it, run nothing
    python benchmarks/tool_calls_study.py --quick        see in minutes that it works

A line a run in OUT/runs.jsonl, appended as it comes (minipeft/lab/tool_calls.py says what is in
it); after every phase, OUT/differences.json and the pictures. An interruption costs the runs in
progress, at most half an hour each. The phases, in order, and minutes of one core, about (two runs
work at a time; in brackets: what one more rate costs, which is tried beyond the best one of a
method while that stands at an end):

    before training                            9
    rates of LoRA, QLoRA, Houlsby             94 (31)    two seeds, which report nothing
    seeds of LoRA, QLoRA, Houlsby             57         0, 1, 2
    rates of Prompt, Prefix                   44 (15)
    seeds of Prompt, Prefix                   29
    rates of FFT                             120 (40)
    seeds of FFT                              66
    with ordinary conversations               42         5 % of the examples, seed 0
    fewer examples                            99         16 to 1,000, seed 0: FFT, LoRA, Prompt
    twice the steps                           72         seed 0: whether the curves are flat
    seconds of a step, in equal dtypes         5         written to OUT/step_costs.json
    together                                 637
"""
import argparse
import itertools
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tool_calls import DATA, answers, docstrings
from torch import Tensor, nn
from tqdm import tqdm

from minipeft.figures import save_figure
from minipeft.files import write_json
from minipeft.lab.compare import machine
from minipeft.lab.rates import record
from minipeft.lab.study import Progress, Runs, in_processes
from minipeft.lab.tool_calls import (COSTS, DTYPES, KINDS, LINES, RESULT, SWEEP_SEEDS, VERSION, Job,
                                     arc_table, chosen, differences, differences_table, other_table,
                                     rates, read, report, report_table, sweep_table)
from minipeft.lab.tool_calls_plot import PICTURES
from minipeft.llm.chat import END, Example, batch_plan, collate, encode_example, read_jsonl
from minipeft.llm.finetune import validate
from minipeft.llm.shared_prefix import shared_logits
from minipeft.llm.smollm2 import load
from minipeft.measure import nbytes, weight_bytes
from minipeft.peft_model import count_parameters
from minipeft.recipes import RECIPES, adapt
from minipeft.train import TrainConfig, adamw, train_step

BATCH = 8                        # examples a step
WATCHED = (10, 20, 40, 80, 120, 240)      # steps, and the last: a look is 100 requests
DIFFERENCES = "differences.json"
ORDINARY = 105                   # conversations: 5 % of what is trained on, with 2,000 examples


# The study


@dataclass(frozen=True)
class Plan:
    families: tuple[tuple[str, ...], ...] = (("lora", "qlora", "houlsby"), ("prompt", "prefix"),
                                             ("full",))                 # swept at the same rates
    steps: int = 180
    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: tuple[int, ...] = (16, 64, 256, 1000)
    sized: tuple[str, ...] = ("full", "lora", "prompt")
    requests: int | None = None          # of the validation and of the test; None: all

    def job(self, method: str, lr: float, seed: int, steps: int | None = None, **other) -> Job:
        dtype = "float32" if method == "full" else "bfloat16"      # AdamW's steps need float32
        return Job(method, lr, seed, self.steps if steps is None else steps, dtype,
                   requests=self.requests, **other)

    @property
    def methods(self) -> list[str]:
        return [method for family in self.families for method in family]


QUICK = Plan((("lora",),), steps=4, seeds=(0, 1), sizes=(16,), sized=("lora",), requests=10)


def phases(plan: Plan, found: Callable[[], list[dict]]) -> Iterator[tuple[str, list[Job]]]:
    """What is run, one after the other, each with its jobs, which depend on what was found before;
    a sweep comes again with more jobs while the best rate stands at an end."""
    def at_chosen(methods, seeds=plan.seeds[:1], **other) -> list[Job]:
        return [plan.job(method, chosen(found(), method), seed, **other)
                for seed in seeds for method in methods]

    yield "before training", [plan.job(method, 0.0, 0, steps=0)
                              for method in ("lora", "qlora", "full") if method in plan.methods]
    for family in plan.families:
        names = ", ".join(RECIPES[method].label for method in family)
        tried = None
        while tried != rates(found(), family):
            tried = rates(found(), family)
            yield f"rates of {names}", [plan.job(method, lr, seed, split="sweep") for lr in tried
                                        for method in family for seed in SWEEP_SEEDS]
        yield f"seeds of {names}", at_chosen(family, plan.seeds)
    yield "with ordinary conversations", at_chosen(plan.methods, ordinary=ORDINARY)
    yield "fewer examples", [job for n in plan.sizes for job in at_chosen(plan.sized, examples=n)]
    yield "twice the steps", at_chosen(plan.methods, steps=2 * plan.steps)


def study(out: Path, plan: Plan, workers: int, progress: Progress) -> None:
    """Every run that is missing in `out`; after each phase, what it found."""
    with Runs(run, out / LINES, VERSION, workers, RESULT) as runs:
        def found() -> list[dict]:
            return [record(line) for line in runs.lines()]

        for name, jobs in phases(plan, found):
            runs.chains(runs, jobs, progress, name)
            print(f"\n# {name}\n\n{texts(found())}", flush=True)
            write_outcome(found(), out)


def write_costs(out: Path) -> None:
    """Measured alone, when no run is in progress; not again."""
    if not (out / COSTS).exists():
        (measured,) = in_processes(all_costs, [DTYPES], 1, None)
        write_json(out / COSTS, measured)


def all_costs(dtypes: tuple[str, ...]) -> dict:
    """`costs` of the frozen weights' dtypes."""
    return {"machine": machine(), **{dtype: costs(dtype) for dtype in dtypes}}


def costs(dtype: str, rounds: int = 5) -> dict[str, dict]:
    """By method: bytes of the weights and of what training adds to them (gradients and two moments;
    activations come on top), and seconds of a step on the same examples, the methods in turn. Full
    fine-tuning has no frozen weights: it is float32."""
    tokenizer = load()[1]
    batch = collate(encoded(read_jsonl(DATA / "train.jsonl")[:BATCH], tokenizer))
    found, steps = {}, {}
    for method, usual in RECIPES.items():
        model = adapt(load()[0], method, usual.llm_size,
                      getattr(torch, dtype) if usual.config else torch.float32).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        found[method] = dict(weights=weight_bytes(model), training=3 * nbytes(trained), seconds=[])
        config = TrainConfig(usual.llm_lr)
        steps[method] = partial(train_step, model, [batch], adamw(trained, config), config,
                                steps=1 + rounds, logits_of=shared_logits)
    for number in range(1 + rounds):                                 # the first warms up
        for method, step in steps.items():
            start = time.perf_counter()
            step(step=number)
            found[method]["seconds"] += [time.perf_counter() - start] if number else []
    return found


def write_outcome(found: list[dict], out: Path) -> None:
    write_json(out / DIFFERENCES, differences(found))
    for name, draw in PICTURES.items():
        save_figure(partial(draw, found), out / f"{name}.png")


def texts(found: list[dict]) -> str:
    """Every table that has a row."""
    tables = {
        "Rates, on the validation set (docstrings: nats per token over the model before)":
            sweep_table(found),
        f"The test (errors: what is wrong first, of {', '.join(KINDS)}, all seeds together)":
            report_table(found),
        "Paired differences": differences_table(found),
        "Under other conditions": other_table(found)}
    arcs = [arc_table(found, method) for method in RECIPES if report(found, method)]
    return "\n\n".join([
        *(f"{title}\n\n{table}" for title, table in tables.items() if table.count("\n") > 1),
        *(["What is right first, in % of the validation requests", *arcs] if arcs else [])])


# A run


def run(job: Job) -> dict:
    """What came out; where the loss or a weight stopped being finite, loss is None, and nothing is
    answered right."""
    model, tokenizer = load()
    torch.manual_seed(job.seed)
    model = adapt(model, job.method, RECIPES[job.method].llm_size, getattr(torch, job.dtype))
    trained = [p for p in model.parameters() if p.requires_grad]
    watch = Watch(tokenizer, requests("validation", job))
    found = dict(trainable=count_parameters(model)[0], machine=machine(), seconds_per_step=None,
                 bytes=dict(weights=weight_bytes(model), training=3 * nbytes(trained)),
                 curve=watch.curve, loss=None, validation=None, docstrings=None, test=None,
                 test_loss=None, errors=None, answers=None)
    if job.split == "report":
        found |= dict(test=[0] * len(requests("test", job)), errors=[])
    try:
        found |= train(model, job, training_set(job, tokenizer), watch)
    except FloatingPointError:
        return found
    lost = validate(model, docstrings(tokenizer), 1)["loss"]
    if not math.isfinite(lost):
        return found
    found |= dict(loss=watch.curve[-1]["loss"], validation=watch.right, docstrings=lost)
    return found | (tested(model, tokenizer, job) if job.split == "report" else {})


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
    """AdamW, as `minipeft finetune` does it; the watch looks at the model on the way.

    FloatingPointError if the loss stops being finite.
    """
    if not job.steps:
        watch(model, 0)
        return {}
    config = TrainConfig(job.lr)
    optimizer = adamw([p for p in model.parameters() if p.requires_grad], config)
    plan, seconds = batch_plan([len(ids) for ids, _ in training], BATCH, job.seed), []
    for step, drawn in enumerate(itertools.islice(plan, job.steps)):
        model.train()
        start = time.perf_counter()
        train_step(model, [collate([training[i] for i in drawn])], optimizer, config, step,
                   job.steps, shared_logits)
        seconds.append(time.perf_counter() - start)
        if step + 1 in WATCHED and step + 1 < job.steps:
            watch(model.eval(), step + 1)
    watch(model.eval(), job.steps)
    return dict(seconds_per_step=statistics.median(seconds))


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
        if not math.isfinite(total):
            raise FloatingPointError(f"the validation loss after step {step} is {total}")
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
    """The test requests, one by one, the errors, and what the ordinary questions get.

    Answers are decoded where the tokens differ, which may still be the same text.
    """
    asked, questions = requests("test", job), read_jsonl(DATA / "questions.jsonl")
    watch = Watch(tokenizer, asked)
    watch(model, job.steps)
    said = iter(answers(model, tokenizer, [m[:1] for m, r in zip(asked, watch.right) if not r],
                        iter))
    got = [m[1]["content"] if sure else next(said) for m, sure in zip(asked, watch.right)]
    errors = [{"request": i, "kind": error_kind(m[1]["content"], text), "got": text}
              for i, (m, text) in enumerate(zip(asked, got)) if text != m[1]["content"]]
    wrong = {error["request"] for error in errors}
    return dict(test=[int(i not in wrong) for i in range(len(asked))], errors=errors,
                test_loss=watch.curve[-1]["loss"],
                answers=answers(model, tokenizer, [m[:1] for m in questions], iter))


def error_kind(wanted: str, got: str) -> str:
    """What is wrong first: form, no JSON object or other keys; stop, more text after the call;
    name, another tool; values."""
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


# The command


def print_report(out: Path) -> None:
    found = read(out)
    if not found:
        raise FileNotFoundError(f"no finished run in {out / LINES}; make some without 'report'")
    print(texts(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"], nargs="?", default="run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tool_calls"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true",
                        help="one method, 4 steps, 10 requests, in OUT/quick")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, got {args.workers}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, but {args.out} is a file")
    out = args.out / "quick" if args.quick else args.out
    try:
        if args.what == "report":
            print_report(out)
        else:
            study(out, QUICK if args.quick else Plan(), args.workers,
                  partial(tqdm, file=sys.stderr, dynamic_ncols=True))
            if not args.quick:
                write_costs(out)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(f"stopped; the finished runs are in {out / LINES}, and the same command goes on")


if __name__ == "__main__":
    main()
