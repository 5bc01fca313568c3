"""Tool calls on SmolLM2: what the base model answers, and what a run of `minipeft finetune` does.

    python benchmarks/tool_calls.py base                 zero-shot and few-shot, to OUT/base.json
    python benchmarks/tool_calls.py score runs/tools     exact match by tool, and the errors

Every method under one protocol: benchmarks/tool_calls_study.py.
"""
import argparse
import ast
import collections
import copy
import itertools
import json
import statistics
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minipeft.files import write_json
from minipeft.gpt import KVCache
from minipeft.lab.compare import machine
from minipeft.llm.chat import END, chat_text, collate, encode_example, read_jsonl
from minipeft.llm.finetune import validate
from minipeft.llm.run_files import load_trained
from minipeft.llm.shared_prefix import gpt_of, shared_logits
from minipeft.llm.smollm2 import load
from minipeft.train import answered_right

DATA = Path(__file__).parent.parent / "data" / "tool_calls"
BAR = partial(tqdm, file=sys.stderr, unit="length")
SCORE, BASE = "score.json", "base.json"


# Scores


def requests(n: int | None = None) -> list[list[dict]]:
    return read_jsonl(DATA / "test.jsonl")[:n]


@torch.no_grad()
def greedy(model, ids: torch.Tensor, caches: list[KVCache], end: int) -> torch.Tensor:
    """The likeliest 60 tokens after (B, T), or fewer where `end` comes first; (B, new)."""
    new, made = ids, []
    while len(made) < 60 and not (made and (torch.cat(made, 1) == end).any(1).all()):
        logits = model(new, logits_at=(slice(None), -1), caches=caches)         # (B, V)
        new = logits.argmax(-1, keepdim=True)
        made.append(new)
    return torch.cat(made, 1)


@torch.no_grad()
def answers(model, tokenizer, asked: list[list[dict]],
            progress: Callable = BAR) -> list[str]:
    """Greedy answers. What all requests begin with (tools, examples) is computed once; requests of
    equal length then go together: without padding no mask is needed."""
    if not asked:
        return []
    rows = [tokenizer.encode(chat_text(messages)).ids for messages in asked]
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*rows))
    P = min(len(list(alike)), min(map(len, rows)) - 1)
    start = [KVCache() for _ in gpt_of(model).model.layers]
    model(torch.tensor([rows[0][:P]]), logits_at=(slice(None), -1), caches=start)
    groups, found = collections.defaultdict(list), {}
    for i, row in enumerate(rows):
        groups[len(row)].append(i)
    end = tokenizer.token_to_id(END)
    for group in progress(groups.values()):
        caches = [copy.copy(cache) for cache in start]
        for cache in caches:
            cache.share(len(cache), len(group))
        made = greedy(model, torch.tensor([rows[i][P:] for i in group]), caches, end).tolist()
        for i, row in zip(group, made):
            found[i] = tokenizer.decode(row[:row.index(end)] if end in row else row)
    return [found[i] for i in range(len(asked))]


def docstrings(tokenizer) -> list:
    """English to forget: docstrings of the standard library's modules, at most 256 tokens each.

    Read from the source, so that no module is imported; it differs a little between Pythons.
    """
    names = ("argparse ast calendar collections/__init__ copy csv decimal difflib doctest heapq "
             "json/__init__ logging/__init__ optparse pickle random statistics").split()
    library, pieces = Path(sysconfig.get_path("stdlib")), []
    for name in names:
        source = (library / f"{name}.py").read_text(encoding="utf-8")
        ids = tokenizer.encode(ast.get_docstring(ast.parse(source)) or "").ids[:256]
        pieces += [(ids, ids)] * (len(ids) > 1)
    return pieces


@torch.no_grad()
def greedily_right(model, encoded: list) -> list[bool]:
    """Which examples greedy decoding answers token by token as wanted."""
    found = []
    for start in range(0, len(encoded), 8):
        input_ids, labels = collate(encoded[start:start + 8])
        logits, targets = shared_logits(model, (input_ids, labels))
        found += answered_right(logits, targets, labels).tolist()
    return found


def score_run(folder: Path, n: int | None = None) -> dict:
    """Exact match of a run on the test requests, in all and by tool, and the wrong answers.

    Answers are decoded where the tokens differ, which may still be the same text.
    """
    model, tokenizer = load()
    model = load_trained(model, folder).eval()
    tested, by_tool, wrong = requests(n), collections.defaultdict(list), []
    encoded = [encode_example(messages, lambda t: tokenizer.encode(t).ids) for messages in tested]
    right = greedily_right(model, encoded)
    said = iter(answers(model, tokenizer, [m[:1] for m, r in zip(tested, right) if not r]))
    for (asked, wanted), sure in zip(tested, right):
        got = wanted["content"] if sure else next(said)
        by_tool[json.loads(wanted["content"])["tool"]].append(got == wanted["content"])
        if got != wanted["content"]:
            wrong.append({"asked": asked["content"], "wanted": wanted["content"], "got": got})
    return {"n": len(tested), "exact_match": 1 - len(wrong) / len(tested),
            "by_tool": {tool: [sum(right), len(right)] for tool, right in by_tool.items()},
            "loss": validate(model, encoded, 8)["loss"], "wrong": wrong}


def tool_list(training: list) -> str:
    """A line a tool, with the keys of its calls, for the prompt of a model that was not trained."""
    calls = [json.loads(messages[1]["content"]) for messages in training]
    lines = {call["tool"]: json.dumps({key: "..." if key != "tool" else call["tool"]
                                       for key in call}) for call in calls}
    return "Answer with one JSON tool call, one of:\n" + "\n".join(lines.values())


def score_base(n: int | None = None, all_shots: tuple[int, ...] = (0, 10, 20)) -> list[dict]:
    """The model as it came: told the tools, and shown examples (the tools come in turn)."""
    model, tokenizer = load()
    training, tested, found = read_jsonl(DATA / "train.jsonl"), requests(n), []
    for shots in all_shots:
        system = {"role": "system", "content": tool_list(training)}
        shown = [turn for messages in training[:shots] for turn in messages]
        asked = [[system, *shown, messages[0]] for messages in tested]
        said = answers(model, tokenizer, asked)
        right = sum(a == messages[1]["content"] for a, messages in zip(said, tested))
        tokens = statistics.median(len(tokenizer.encode(chat_text(a)).ids) for a in asked)
        found.append({"shots": shots, "prompt_tokens": tokens, "right": right, "n": len(tested)})
    return found


def base_lines(base: dict) -> str:
    return "\n".join(f"base model, {shot['shots']} examples in the prompt "
                     f"({shot['prompt_tokens']:.0f} tokens): {shot['right']} of {shot['n']} right"
                     for shot in base["shots"])


def show_score(scores: dict) -> None:
    for mistake in scores["wrong"]:
        print("asked   {asked}\nwanted  {wanted}\ngot     {got}\n".format(**mistake))
    for tool, (right, n) in scores["by_tool"].items():
        print(f"{tool:<10}{right:>4} of {n}")
    print(f"{'all':<10}{scores['n'] - len(scores['wrong']):>4} of {scores['n']}, exact match "
          f"{scores['exact_match']:.1%}, loss {scores['loss']:.4f}")


def main() -> None:
    torch.set_flush_denormal(True)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "score"])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run, for score")
    parser.add_argument("--n", type=int, help="test requests (default: all 200)")
    parser.add_argument("--out", type=Path, default=Path("results/tool_calls"), help="for base")
    args = parser.parse_args()
    if args.what == "base":
        base = {"machine": machine(), "shots": score_base(args.n)}
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / BASE, base)
        print(base_lines(base))
    elif args.run is None:
        parser.error("score wants the folder of a run")
    else:
        scores = score_run(args.run, args.n)
        write_json(args.run / SCORE, scores)
        show_score(scores)


if __name__ == "__main__":
    main()
