"""Write benchmarks/RESULTS.md from the stored results: `python benchmarks/results_page.py`.

tests/test_readme.py fails when the page, or the table in README.md, is not what this makes.
"""
import json
import os
from pathlib import Path

from minipeft import bench_nf4, bench_step, summary
from minipeft.cli.compare import report

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER.parent / "README.md"
START, END = "<!-- written by benchmarks/results_page.py -->\n", "\n<!-- end -->"


def stored(name: str) -> dict:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def machine(results: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in results["machine"].items())


def page() -> str:
    compare, nf4 = stored("compare/compare.json"), stored("nf4_cpu.json")
    pictures = "\n".join(f"![{name}](results/compare/{name}.png)" for name in
                         ("quality", "curves", "forgetting", "parameters", "memory", "latency"))
    parity = (FOLDER / "parity.md").read_text(encoding="utf-8").strip()
    return f"""# Results

Written by `python benchmarks/results_page.py` from the files in `benchmarks/results/`.

## Every method on the tiny GPT

`python -m minipeft compare --out benchmarks/results/compare` ({machine(compare)})

```
{report(compare).strip()}
```

{pictures}

## NF4 beside bitsandbytes

`python -m minipeft bench nf4 --out benchmarks/results`

```
{bench_nf4.table(nf4).strip()}
```

![NF4 kernels](results/nf4_cpu.png)

## A training step beside HuggingFace PEFT

`python -m minipeft bench step --out benchmarks/results`

```
{bench_step.table(stored("step.json"))}
```

## Parity with the real libraries

{parity}
"""


def readme(text: str) -> str:
    """README.md with the summary table of the stored comparison."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + summary.markdown_table(stored("compare/compare.json")) + END + after


def write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    write(FOLDER / "RESULTS.md", page())
    write(README, readme(README.read_text(encoding="utf-8")))
