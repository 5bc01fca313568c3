"""Write what is made of the stored results: `python benchmarks/results_page.py`.

That is benchmarks/RESULTS.md, the tables in README.md, and the one in docs/own_model.md, for which
SmolLM2 must be installed (its tokenizer counts). tests/test_readme.py and tests/test_own_model.py
fail when they are not what this makes.
"""
import functools
import json
from pathlib import Path

import own_model
import streamed_load
import tool_calls
import tool_calls_study
from gpu import fits, kernels, latency, quality

from minipeft.cli.capacity import report as capacity_report
from minipeft.cli.compare import graded_report, report
from minipeft.files import write_text
from minipeft.lab import bench_decode, bench_nf4, bench_step, capacity, graded, plot, summary
from minipeft.lab import tool_calls as lab_tool_calls
from minipeft.lab.tool_calls_plot import PICTURES
from minipeft.llm.chat import read_jsonl
from minipeft.recipes import RECIPES

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER.parent / "README.md"
OWN_MODEL = FOLDER.parent / "docs" / "own_model.md"
START, END = "<!-- written by benchmarks/results_page.py -->\n", "<!-- end -->"
TOOLS_START = "<!-- on SmolLM2, written by benchmarks/results_page.py -->\n"
STEP_START = "<!-- beside HF PEFT, written by benchmarks/results_page.py -->\n"
GPU_START = "<!-- at full size, written by benchmarks/results_page.py -->\n"
OWN_START = "<!-- what to expect, written by benchmarks/results_page.py -->\n"


def stored(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def machine(results: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in results["machine"].items())


def measured_on_gpus(part: str, folder: Path = RESULTS) -> dict[str, dict]:
    """What gpu_evidence.py stored of a part, by GPU; smoke runs are not evidence."""
    found = [json.loads(path.read_text(encoding="utf-8"))
             for path in sorted(folder.glob(f"*/{part}.json"))]
    return {results["machine"]["processor"]: results for results in found if not results["smoke"]}


@functools.cache
def full_size(names: tuple[str, ...] = tuple(fits.CASES)) -> str:
    """Claimed, predicted now by the planner, and measured where a GPU has done it."""
    return fits.markdown(measured_on_gpus("fits"), names)


def gpu_tables() -> str:
    """The other parts of the evidence, or a line that says that there is none."""
    blocks = [f"### {name}, {gpu}\n\n```\n{part.table(results)}\n```"
              for name, part in (("Latency", latency), ("Kernels", kernels), ("Quality", quality))
              for gpu, results in measured_on_gpus(name.lower()).items()]
    return "\n\n".join(blocks) or "Latency, kernels, quality with five seeds: not measured yet."


def page() -> str:
    compare, nf4 = stored("compare/compare.json"), stored("nf4_cpu.json")
    pictures = "\n".join(f"![{name}](results/compare/{name}.png)" for name in
                         plot.PICTURES)
    study = graded_report(graded.read(RESULTS / "languages")).strip()
    held = capacity_report(capacity.read(RESULTS / "capacity")).strip()
    drawn = "\n".join(f"![{name}](results/tool_calls/{name}.png)" for name in PICTURES
                      if (RESULTS / "tool_calls" / f"{name}.png").exists())
    calls = lab_tool_calls.read(RESULTS / "tool_calls")
    costs = lab_tool_calls.read_costs(RESULTS / "tool_calls")
    parity = (FOLDER / "parity.md").read_text(encoding="utf-8").strip()
    return f"""# Results

Written by `python benchmarks/results_page.py` from the files in `benchmarks/results/`.

## Every method on the tiny GPT

`python -m minipeft compare --out benchmarks/results/compare` ({machine(compare)})

```
{report(compare).strip()}
```

{pictures}

## Fast, and at the end

`python -m minipeft compare --graded --out benchmarks/results/languages`; a line a run in
`graded.jsonl`.

```
{study}
```

![graded](results/languages/graded.png)

## How many bits fit

`python -m minipeft capacity --out benchmarks/results/capacity`; a line a run in `capacity.jsonl`.

```
{held}
```

![capacity](results/capacity/capacity.png)

## NF4 beside bitsandbytes

`python -m minipeft bench nf4 --out benchmarks/results`

```
{bench_nf4.table(nf4).strip()}
```

![NF4 kernels](results/nf4_cpu.png)

![4-bit layers, of the faster of bitsandbytes' two ways](results/nf4_cpu_layers.png)

## A training step beside HuggingFace PEFT

`python -m minipeft bench step --out benchmarks/results`

```
{bench_step.table(stored("step.json"))}
```

## Decoding beside transformers, HuggingFace PEFT and bitsandbytes

`python -m minipeft bench decode --out benchmarks/results`

```
{bench_decode.table(stored("decode.json"))}
```

![tokens a second of SmolLM2](results/decode.png)

## Every method on a real language model

SmolLM2-135M, requests to JSON tool calls (`data/tool_calls/`), every method by one rule: rates are
chosen on validation requests whose phrasings and values occur nowhere else, by seeds that report
nothing; what is reported is the test after the last step. `python benchmarks/tool_calls_study.py`,
a line a run in `runs.jsonl`. Runs are added as they finish; what is missing below has not been run.

```
{tool_calls_study.texts(calls)}
```

{drawn}

LoRA's answers by tool, right of asked, over its seeds:

{tools_markdown(calls, "lora")}

What ten ordinary questions get, seed 0 of each method (mixed: {tool_calls_study.ORDINARY} ordinary
conversations were among the examples):

```
{answers_text(calls)}
```

Bytes and seconds of a step on the same 8 examples, all methods in turn, one thread, in equal dtypes
of the frozen weights (full fine-tuning has none: float32; {machine(costs)}); MB are weights,
gradients and moments, without activations:

```
{lab_tool_calls.costs_table(costs)}
```

The base model, told the tools and shown examples, `python benchmarks/tool_calls.py base`:

```
{tool_calls.base_lines(stored("tool_calls/base.json"))}
```

## Loading in 4 bits, a tensor at a time

`python benchmarks/streamed_load.py`

```
{streamed_load.table(stored("streamed_load/streamed_load.json"))}
```

![memory of the process while a model is loaded](results/streamed_load/streamed_load.png)

## At full size: claimed, predicted, measured

`python benchmarks/gpu_evidence.py` on a CUDA GPU; predicted by `python -m minipeft memory`. One row
of 512 tokens, AdamW, gradient checkpointing, LoRA on all linears with float32 adapters. Cards are
sold in GB and have GiB: caps, predictions and peaks are in GiB (2^30 bytes), claims in GB (1e9).
A cap binds torch's allocator; CUDA's own context comes on top, and is stored beside the peak.

{full_size()}

{gpu_tables()}

## Parity with the real libraries

{parity}
"""


def tools_markdown(found: list[dict], method: str) -> str:
    """Right answers of those asked by tool, summed over the seeds, with a mistake of each."""
    asked = read_jsonl(tool_calls.DATA / "test.jsonl")
    tools = [json.loads(messages[1]["content"])["tool"] for messages in asked]
    runs = lab_tool_calls.report(found, method)
    lines = ["| tool | right | a wrong answer |", "|---|---|---|"]
    for tool in dict.fromkeys(tools):
        right = [run["test"][i] for run in runs for i, of in enumerate(tools) if of == tool]
        wrong = next((error for run in runs for error in run["errors"]
                      if tools[error["request"]] == tool), None)
        example = ("" if wrong is None else
                   f'"{asked[wrong["request"]][0]["content"]}" → `{wrong["got"]}`')
        lines.append(f"| {tool} | {sum(right)} of {len(right)} | {example} |")
    return "\n".join(lines)


def answers_text(found: list[dict]) -> str:
    """A block a question: before training, after it, and with ordinary conversations mixed in."""
    answered = {}
    for name, other in (("before", dict(steps=0)), ("", {}),
                        ("mixed", dict(ordinary=tool_calls_study.ORDINARY))):
        for method, recipe in RECIPES.items():
            runs = lab_tool_calls.report(found, method, **other)
            if runs and runs[0]["answers"] is not None:
                answered[f"{recipe.label}, {name}".strip(", ")] = runs[0]["answers"]
    lines = []
    for number, messages in enumerate(read_jsonl(tool_calls.DATA / "questions.jsonl")):
        lines += ["", messages[0]["content"]]
        lines += [f"  {name:<16}{one_line(said[number])}" for name, said in answered.items()]
    return "\n".join(lines[1:])


def one_line(text: str, most: int = 78) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + " …"


def step_markdown(results: dict) -> str:
    """What a training step takes of HF PEFT's time and memory, a row a case."""
    lines = ["| a training step | time, of HF PEFT's (quartiles) | peak memory, of HF PEFT's |",
             "|---|---|---|"]
    for row in bench_step.ratios(results):
        lines.append(f"| {row['method']}, {row['dtype']} | {row['time_ratio']:.2f} "
                     f"({row['time_ratio_low']:.2f} to {row['time_ratio_high']:.2f}) | "
                     f"{row['memory_ratio']:.2f} |")
    return "\n".join(lines)


def tools_block() -> str:
    """README's table of SmolLM2 on tool calls."""
    found = lab_tool_calls.read(RESULTS / "tool_calls")
    return f"""```
{lab_tool_calls.report_table(found)}
{tool_calls.base_lines(stored("tool_calls/base.json"))}
```"""


def readme(text: str) -> str:
    """README.md with the tables of what is stored, and the headlines at full size."""
    text = between(text, START, summary.markdown_table(stored("compare/compare.json")))
    text = between(text, TOOLS_START, tools_block())
    text = between(text, STEP_START, step_markdown(stored("step.json")))
    return between(text, GPU_START, full_size(fits.HEADLINES))


def expectations(text: str) -> str:
    """docs/own_model.md with its table."""
    return between(text, OWN_START, f"```\n{own_model.table()}\n```")


def between(text: str, start: str, content: str) -> str:
    """The text with what stands from `start` to its END replaced; ValueError without both."""
    before, mark, rest = text.partition(start)
    old, end, after = rest.partition(END)
    if not (mark and end) or "<!--" in old:         # or what follows would be replaced as well
        raise ValueError(f"the page wants {start.strip()!r}, and {END!r} before the next mark")
    return f"{before}{start}{content}\n{END}{after}"


if __name__ == "__main__":
    write_text(FOLDER / "RESULTS.md", page())
    write_text(README, readme(README.read_text(encoding="utf-8")))
    write_text(OWN_MODEL, expectations(OWN_MODEL.read_text(encoding="utf-8")))
