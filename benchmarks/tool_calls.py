"""Tool calls on SmolLM2: the base model as it is, what a run has learned, and every method.

    python benchmarks/tool_calls.py base                        zero-shot and few-shot
    python benchmarks/tool_calls.py score runs/tools            exact match by tool, and the errors
    python benchmarks/tool_calls.py compare --out results/tools [--quick]

`compare` fine-tunes by every method through the command a user types, one run after the other, and
scores each. `--quick`: 20 steps, 40 test requests, one seed, to see that it works.
"""
import argparse
import collections
import json
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from minipeft.chat import END, chat_text, encode_example, read_jsonl
from minipeft.finetune import METHODS, validate
from minipeft.measure import nbytes
from minipeft.run_files import REPORT, load_trained, write_json
from minipeft.smollm2 import load

DATA = Path(__file__).parent.parent / "data" / "tool_calls"
# Peak learning rates of the comparison's sweep; each method's default is among its own
GRID = {"lora": (3e-4, 1e-3, 3e-3), "qlora": (3e-4, 1e-3, 3e-3), "houlsby": (3e-4, 1e-3, 3e-3),
        "prompt": (5e-2, 1e-1, 3e-1), "prefix": (1e-2, 5e-2, 1e-1), "full": (2e-5, 5e-5, 1e-4)}


def requests(n: int | None = None) -> list[list[dict]]:
    return read_jsonl(DATA / "test.jsonl")[:n]


def tool_list(training: list) -> str:
    """A line a tool, with the keys of its calls, for the prompt of a model that was not trained."""
    calls = [json.loads(messages[1]["content"]) for messages in training]
    lines = {call["tool"]: json.dumps({key: "..." if key != "tool" else call["tool"]
                                       for key in call}) for call in calls}
    return "Answer with one JSON tool call, one of:\n" + "\n".join(lines.values())


def shots(training: list, n: int) -> list[dict]:
    """The first n training examples as turns: the tools come in turn."""
    return [turn for messages in training[:n] for turn in messages]


@torch.no_grad()
def answers(model, tokenizer, asked: list[list[dict]]) -> list[str]:
    """Greedy answers. Requests of equal length go together: without padding no mask is needed."""
    groups, found = collections.defaultdict(list), {}
    for i, messages in enumerate(asked):
        ids = tokenizer.encode(chat_text(messages)).ids
        groups[len(ids)].append((i, ids))
    end = tokenizer.token_to_id(END)
    for length, group in tqdm(sorted(groups.items()), file=sys.stderr, unit="length"):
        out = model.generate(torch.tensor([ids for _, ids in group]), 60, eos_token_id=end)
        for (i, _), row in zip(group, out[:, length:].tolist()):
            found[i] = tokenizer.decode(row)               # without the special tokens
    return [found[i] for i in range(len(asked))]


def score_base(args) -> None:
    model, tokenizer = load()
    training, tested = read_jsonl(DATA / "train.jsonl"), requests(args.n)
    for n_shots in (0, 10, 20):
        system = {"role": "system", "content": tool_list(training)}
        asked = [[system, *shots(training, n_shots), messages[0]] for messages in tested]
        said = answers(model, tokenizer, asked)
        right = sum(a == messages[1]["content"] for a, messages in zip(said, tested))
        length = len(tokenizer.encode(chat_text(asked[0])).ids)
        print(f"{n_shots:>2}-shot, about {length} tokens: exact match {right}/{len(tested)} = "
              f"{right / len(tested):.1%}", flush=True)


def score_run(folder: Path, n: int | None, show: bool) -> dict:
    """Exact match of a run on the test requests, in all and by tool."""
    model, tokenizer = load()
    model = load_trained(model, folder).eval()
    tested = requests(n)
    said = answers(model, tokenizer, [messages[:1] for messages in tested])
    by_tool = collections.defaultdict(list)
    for answer, (asked, wanted) in zip(said, tested):
        by_tool[json.loads(wanted["content"])["tool"]].append(answer == wanted["content"])
        if show and answer != wanted["content"]:
            print(f"asked   {asked['content']}\nwanted  {wanted['content']}\ngot     {answer}\n")
    encoded = [encode_example(messages, lambda t: tokenizer.encode(t).ids) for messages in tested]
    return {"n": len(tested), "exact_match": sum(map(sum, by_tool.values())) / len(tested),
            "by_tool": {tool: [sum(right), len(right)] for tool, right in by_tool.items()},
            "loss": validate(model, encoded, 8)["loss"],
            "forgetting": validate(model, english(tokenizer), 1)["loss"],
            "bytes": nbytes([*model.parameters(), *model.buffers()])}


def english(tokenizer) -> list:
    """Docstrings of the standard library as general English, 8 pieces of 256 tokens."""
    text = "\n\n".join(module.__doc__ for module in (argparse, collections, json, subprocess))
    ids = tokenizer.encode(text).ids
    pieces = [ids[i:i + 256] for i in range(0, min(len(ids), 2048), 256)]
    return [(piece, piece) for piece in pieces if len(piece) > 1]


def compare(args) -> None:
    steps, n, seeds = (20, 40, 1) if args.quick else (110, None, args.seeds)
    results = []
    for method in METHODS:
        rates = (METHODS[method][1],) if args.quick else GRID[method]
        for lr, seed in [(lr, seed) for lr in rates for seed in range(seeds)]:
            out = args.out / f"{method}_{lr:g}_{seed}"
            command = [sys.executable, "-m", "minipeft", "finetune", "--data",
                       str(DATA / "train.jsonl"), "--method", method, "--lr", str(lr), "--steps",
                       str(steps), "--seed", str(seed), "--out", str(out)]
            if not (out / REPORT).exists():
                subprocess.run(command, check=True)
            report = json.loads((out / REPORT).read_text(encoding="utf-8"))
            results.append({"method": method, "lr": lr, "seed": seed, "command": command[1:],
                            "seconds_per_step": report["seconds_per_step"],
                            "validation": report["best"], "test": score_run(out, n, show=False)})
            write_json(args.out / "comparison.json", {"runs": results})
            print(f"{method:<8} lr {lr:<7g} seed {seed}  exact match "
                  f"{results[-1]['test']['exact_match']:.1%}  "
                  f"loss {results[-1]['test']['loss']:.4f}  general English {results[-1]['test']['forgetting']:.3f}"
                  f"  {report['seconds_per_step']:.2f} s/step", flush=True)


def main() -> None:
    torch.set_flush_denormal(True)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "score", "compare"])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run, for score")
    parser.add_argument("--n", type=int, help="test requests (default: all 200)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/tool_calls"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.what == "base":
        score_base(args)
    elif args.what == "compare":
        compare(args)
    elif args.run is None:
        parser.error("score wants the folder of a run")
    else:
        scores = score_run(args.run, args.n, show=True)
        for tool, (right, n) in scores.pop("by_tool").items():
            print(f"{tool:<10}{right:>4} of {n}")
        print(json.dumps(scores))


if __name__ == "__main__":
    main()
