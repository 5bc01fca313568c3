"""Tool calls on SmolLM2: the base model as it is, what a run has learned, and every method.

    python benchmarks/tool_calls.py base                        zero-shot and few-shot
    python benchmarks/tool_calls.py score runs/tools            exact match by tool, and the errors
    python benchmarks/tool_calls.py compare [--quick]           every method, rates swept, 3 seeds

`compare` fine-tunes by every method through the command a user types, two runs at a time with one
thread each, and scores each on the test requests. First seed 0 at every learning rate of GRID; the
one with the lowest validation loss is then trained with the other seeds. What is there already is
not done again. `--quick`: 20 steps, 40 requests, one rate and seed: to see that it works.
"""
import argparse
import ast
import collections
import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minipeft.figures import look, new_figure, save_figure
from minipeft.files import write_json
from minipeft.gpt import KVCache
from minipeft.lab.compare import machine
from minipeft.llm.chat import END, chat_text, collate, encode_example, read_jsonl
from minipeft.llm.finetune import RunRecipe, faster_dtype, parts, validate
from minipeft.llm.run_files import REPORT, load_trained
from minipeft.llm.shared_prefix import gpt_of, shared_logits
from minipeft.llm.smollm2 import load
from minipeft.measure import nbytes
from minipeft.recipes import RECIPES
from minipeft.train import accumulate, answered_right

DATA = Path(__file__).parent.parent / "data" / "tool_calls"
BAR = partial(tqdm, file=sys.stderr, unit="length")
SCORE, RESULTS = "score.json", "comparison.json"
# Peak learning rates of the sweep, quick methods first; each default is among them. Where the best
# of three was the largest or the smallest, one more was tried beyond it.
GRID = {"lora": (3e-4, 1e-3, 3e-3), "qlora": (3e-4, 1e-3, 3e-3, 1e-2),
        "houlsby": (3e-4, 1e-3, 3e-3, 1e-2), "prompt": (2e-2, 5e-2, 1e-1, 3e-1),
        "prefix": (1e-2, 5e-2, 1e-1, 2e-1), "full": (2e-5, 5e-5, 2e-4, 5e-4)}


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


def losses(model, tokenizer, tested: list[list[dict]]) -> dict[str, float]:
    """Nats per token on the wanted answers, and on general English."""
    encoded = [encode_example(messages, lambda t: tokenizer.encode(t).ids) for messages in tested]
    return {"loss": validate(model, encoded, 8)["loss"],
            "english": validate(model, docstrings(tokenizer), 1)["loss"]}


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
            **losses(model, tokenizer, tested), "wrong": wrong}


def tool_list(training: list) -> str:
    """A line a tool, with the keys of its calls, for the prompt of a model that was not trained."""
    calls = [json.loads(messages[1]["content"]) for messages in training]
    lines = {call["tool"]: json.dumps({key: "..." if key != "tool" else call["tool"]
                                       for key in call}) for call in calls}
    return "Answer with one JSON tool call, one of:\n" + "\n".join(lines.values())


def score_base(n: int | None = None, all_shots: tuple[int, ...] = (0, 10, 20)) -> dict:
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
    return {"shots": found, **losses(model, tokenizer, tested)}


def costs(dtype: str, rounds: int = 5) -> dict[str, dict]:
    """By method: bytes of the weights and of what training adds to them (gradients and two moments;
    activations come on top), and seconds of a step on the same 8 examples, the methods in turn."""
    tokenizer = load()[1]
    examples = [encode_example(messages, lambda t: tokenizer.encode(t).ids)
                for messages in read_jsonl(DATA / "train.jsonl")[:8]]
    found, steps = {}, {}
    for method, usual in RECIPES.items():
        recipe = RunRecipe(method, usual.llm_size, usual.llm_lr,
                           dtype if usual.config else "float32")
        model = recipe.adapt(load()[0]).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        found[method] = {"weights": nbytes([*model.parameters(), *model.buffers()]),
                         "training": 3 * nbytes(trained), "seconds": []}
        steps[method] = model, torch.optim.AdamW(trained, lr=recipe.lr)
    for number in range(1 + rounds):                                 # the first warms up
        for method, (model, optimizer) in steps.items():
            start = time.perf_counter()
            accumulate(model, parts(examples, len(examples)), shared_logits)
            optimizer.step()
            optimizer.zero_grad()
            found[method]["seconds"] += [time.perf_counter() - start] if number else []
    return found


# The comparison


@dataclass(frozen=True)
class Job:
    method: str
    lr: float
    seed: int
    steps: int
    dtype: str                 # of the frozen weights; full fine-tuning is float32

    def folder(self, out: Path) -> Path:
        return out / f"{self.method}_{self.lr:g}_{self.steps}steps_seed{self.seed}"

    def command(self, out: Path) -> list[str]:
        dtype = "float32" if self.method == "full" else self.dtype
        return (f"-m minipeft finetune --data {DATA / 'train.jsonl'} --method {self.method} "
                f"--lr {self.lr:g} --steps {self.steps} --seed {self.seed} --dtype {dtype} "
                f"--out {self.folder(out)}").split()


def run_python(arguments: list[str]) -> None:
    """A process of one thread; OSError with its last words if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise OSError(f"{' '.join(arguments)} failed: {done.stderr.strip()[-400:]}")


def train_job(job: Job, out: Path) -> None:
    folder = job.folder(out)
    if not (folder / REPORT).exists():
        resume = ["-m", "minipeft", "finetune", "--resume", "--out", str(folder)]
        run_python(resume if (folder / "run.json").exists() else job.command(out))


def score_job(job: Job, out: Path, n: int | None) -> None:
    folder = job.folder(out)
    if not (folder / SCORE).exists():
        run_python([__file__, "score", str(folder), *(["--n", str(n)] if n else [])])


def in_parallel(what, jobs: list[Job], name: str) -> None:
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(what, jobs), total=len(jobs), desc=name, file=sys.stderr))


def read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def collect(jobs: list[Job], out: Path, about: dict) -> dict:
    """Everything that is finished so far, written to comparison.json and a picture."""
    runs = []
    for job in jobs:
        report, test = read(job.folder(out) / REPORT), read(job.folder(out) / SCORE)
        if report:
            runs.append({"method": job.method, "lr": job.lr, "seed": job.seed, "test": test,
                         "trained": report["trainable_parameters"], "best": report["best"],
                         "seconds_per_step": report["seconds_per_step"],
                         "curve": report["history"]["validation"],
                         "dtype": report["settings"]["recipe"]["dtype"]})
    results = about | {"base": read(out / "base.json"), "costs": read(out / "costs.json"),
                       "runs": runs}
    write_json(out / RESULTS, results)
    if any(run["test"] for run in runs):
        save_figure(lambda: figure(results), out / "comparison.png")
    return results


def chosen_rates(results: dict) -> dict[str, float]:
    """The learning rate with the lowest validation loss of seed 0, by method."""
    swept = [run for run in results["runs"] if run["seed"] == 0]
    return {method: min((run for run in swept if run["method"] == method),
                        key=lambda run: run["best"]["loss"])["lr"] for method in GRID}


def kept_dtype(out: Path) -> str:
    """What is faster here, timed once: a comparison that goes on later must not mix dtypes."""
    if not (out / "dtype.json").exists():
        write_json(out / "dtype.json", {"dtype": faster_dtype(load()[0].config)})
    return read(out / "dtype.json")["dtype"]


def compare(out: Path, steps: int, n: int | None, grid: dict, seeds: int) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    dtype = kept_dtype(out)
    about = dict(machine=machine(), steps=steps, threads=1, grid=grid,
                 rule="the rate with the lowest validation loss of seed 0, then the other seeds")
    if not (out / "base.json").exists():
        write_json(out / "base.json", score_base(n, (0, 10) if n else (0, 10, 20)))
    if not (out / "costs.json").exists():
        write_json(out / "costs.json", costs(dtype))
    jobs = [Job(method, lr, 0, steps, dtype) for method, rates in grid.items() for lr in rates]
    in_parallel(lambda job: train_job(job, out), jobs, "sweep")
    rates = chosen_rates(collect(jobs, out, about))
    for seed in range(seeds):
        again = [Job(method, lr, seed, steps, dtype) for method, lr in rates.items()]
        jobs += [job for job in again if job not in jobs]
        in_parallel(lambda job: train_job(job, out), again, f"seed {seed}")
        in_parallel(lambda job: score_job(job, out, n), again, f"scores of seed {seed}")
        results = collect(jobs, out, about)
    return results


# What came out


def scored(results: dict, method: str) -> list[dict]:
    return [run for run in results["runs"] if run["method"] == method and run["test"]]


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation; of one value, the value."""
    deviation = f"±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(results: dict) -> str:
    base = results["base"]
    lines = [f"{results['steps']} steps of 8 examples; {results['rule']}",
             f"{'':<9}{'trained':>12}{'MB':>6}{'s/step':>8}{'rate':>8}{'n':>3}"
             f"{'exact match %':>15}{'test loss':>15}{'English, nats':>15}"]
    for method, usual in RECIPES.items():
        runs, cost = scored(results, method), results["costs"].get(method)
        if runs and cost:
            exact, loss, english_ = ([run["test"][key] for run in runs]
                                     for key in ("exact_match", "loss", "english"))
            lines.append(f"{usual.label:<9}{runs[0]['trained']:>12,}"
                         f"{(cost['weights'] + cost['training']) / 1e6:>6.0f}"
                         f"{statistics.median(cost['seconds']):>8.2f}{runs[0]['lr']:>8g}"
                         f"{len(runs):>3}{spread([100 * e for e in exact], 1):>15}"
                         f"{spread(loss, 4):>15}"
                         f"{spread([e - base['english'] for e in english_], 2):>15}")
    lines += ["MB: weights, gradients and moments, without activations; s/step: in turn, one run",
              "English: what a token of general English costs more than under the base model"]
    lines += [f"base model, {shot['shots']} examples in the prompt ({shot['prompt_tokens']:.0f} "
              f"tokens): {shot['right']} of {shot['n']} right" for shot in base["shots"]]
    return "\n".join(lines)


def tools_markdown(results: dict, method: str) -> str:
    """Right answers of those asked by tool, summed over the seeds, with a mistake of each."""
    runs, lines = scored(results, method), ["| tool | right | a wrong answer |", "|---|---|---|"]
    for tool in runs[0]["test"]["by_tool"]:
        right, n = (sum(run["test"]["by_tool"][tool][i] for run in runs) for i in (0, 1))
        wrong = [w for run in runs for w in run["test"]["wrong"]
                 if json.loads(w["wanted"])["tool"] == tool]
        example = f'"{wrong[0]["asked"]}" → `{wrong[0]["got"]}`' if wrong else ""
        lines.append(f"| {tool} | {right} of {n} | {example} |")
    return "\n".join(lines)


def figure(results: dict):
    """Exact match, and what general English costs, a mark for each seed."""
    fig, axes = new_figure(2, figsize=(9.0, 3.6))
    base = results["base"]["english"]
    for i, method in enumerate(RECIPES):
        style = {**look(method), "linestyle": "none"}
        for run in scored(results, method):
            axes[0].plot(i, 100 * run["test"]["exact_match"], **style)
            axes[1].plot(i, run["test"]["english"] - base, **style)
    for ax in axes:
        ax.set_xticks(range(len(RECIPES)), [recipe.label for recipe in RECIPES.values()])
    shots = max(shot["right"] / shot["n"] for shot in results["base"]["shots"])
    axes[0].axhline(100 * shots, color="0.4", linestyle="--", linewidth=1)
    axes[0].text(0.99, 100 * shots + 2, "base, few-shot", ha="right", fontsize=8, color="0.3",
                 transform=axes[0].get_yaxis_transform())
    axes[0].set(ylabel="exact match on held-out requests (%)", ylim=(-3, 103))
    axes[1].set(ylabel="general English: loss over the base's\n(nats per token)")
    return fig


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
    parser.add_argument("what", choices=["base", "score", "compare"])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run, for score")
    parser.add_argument("--n", type=int, help="test requests (default: all 200)")
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison (default: 3)")
    parser.add_argument("--steps", type=int, default=60, help="of every run (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("results/tool_calls"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.what == "compare":
        quick = {method: (RECIPES[method].llm_lr,) for method in GRID}
        print(table(compare(args.out / "quick", 20, 40, quick, 1) if args.quick else
                    compare(args.out, args.steps, args.n, GRID, args.seeds)))
    elif args.what == "base":
        print(json.dumps(score_base(args.n), indent=2))
    elif args.run is None:
        parser.error("score wants the folder of a run")
    else:
        scores = score_run(args.run, args.n)
        write_json(args.run / SCORE, scores)
        show_score(scores)


if __name__ == "__main__":
    main()
