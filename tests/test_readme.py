"""Published tables are what the stored results say."""
import contextlib
import importlib
import io
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("tokenizers", reason="tokenizers is the optional extra minipeft[llm]")
from minipeft.cli import finetune
from minipeft.lab import graded, tool_calls
from minipeft.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    sys.path.insert(0, str(ROOT / "benchmarks"))        # where Python looks when the script is run
    return importlib.import_module("results_page")


def test_the_results_page_is_what_the_stored_results_make(maker):
    assert (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8") == maker.page()


def test_the_tables_of_the_readme_are_those_of_the_stored_results(maker):
    assert maker.readme(README) == README


def test_a_table_replaces_only_what_stands_between_its_own_marks(maker):
    start, end = maker.STEP_START, maker.END
    for old in ("", "old\n"):
        assert maker.between(f"a {start}{old}{end} b {end}", start, "new") == (
            f"a {start}new\n{end} b {end}")
    for text in ("no mark", start, f"{start}lost\n{maker.GPU_START}{end}"):
        with pytest.raises(ValueError, match="before the next mark"):
            maker.between(text, start, "new")


def test_links_lead_to_files():
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "notebooks/README.md",
                 "notebooks/TEACHING.md"):
        page = ROOT / name
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_page_for_contributors_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`\n]+)`", text)
    files = set(re.findall(r"(?<![\w/.])\.?(?:\w+/)+[\w.]*", text))
    names = {line for line in quoted if re.fullmatch("[A-Z]+", line)}
    targets = {line.removeprefix("make ") for line in quoted if line.startswith("make ")}
    assert len(files) > 20 and names > {"METHODS", "CASES"} and targets > {"lab", "test"}
    folders = ("minipeft", "tests", "benchmarks")
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders
                     for path in (ROOT / folder).rglob("*.py"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lost = ({name for name in files if not (ROOT / name).exists()}
            | {name for name in names if not re.search(rf"(?m)^{name} = ", code)}
            | {name for name in targets if not re.search(rf"(?m)^{name}:", makefile)})
    assert not lost, "CONTRIBUTING.md names what does not exist"


def test_the_way_of_a_batch_names_functions_of_the_files_beside_them():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    way = re.search(r"## The way of a batch.*?\n(?=## )", text, flags=re.DOTALL)[0]
    found = 0
    for station in re.split(r"\n(?=\d+\. )", way)[1:]:
        code = "".join((ROOT / path).read_text(encoding="utf-8")
                       for path in re.findall(r"`(minipeft/[\w/]+\.py)`", station))
        for name in re.findall(r"`([\w.]+)`", station):
            found += 1
            assert re.search(rf"(?m)^ *(def|class) {name.rpartition('.')[2]}\b", code), name
    assert found > 15


def test_the_python_example_prints_what_the_readme_says():
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert f"# {out.getvalue().strip()}" == code.strip().splitlines()[-1]


def test_every_notebook_and_room_is_on_the_map():
    for path in [*(ROOT / "notebooks").glob("*.ipynb")]:
        assert path.name in README, path.name
    for door in (ROOT / "minipeft").glob("*/__init__.py"):
        assert f"| `minipeft/{door.parent.name}/` |" in README, door


def test_the_picture_of_the_house_shows_the_present_house():
    sys.path.insert(0, str(ROOT / "docs"))
    house = importlib.import_module("house")
    drawn = Image.open(house.PICTURE).text["Description"]
    assert drawn == house.description(), "the house has changed; draw it: python docs/house.py"


def test_the_transcript_of_the_language_model_is_that_of_the_stored_run(maker, capsys):
    stored = ROOT / "benchmarks" / "results" / "tool_calls"
    report, score = (json.loads((stored / f"example_{name}.json").read_text(encoding="utf-8"))
                     for name in ("report", "score"))
    finetune.show(report, Path("runs/tools"))
    maker.tool_calls.show_score(score)
    printed = capsys.readouterr().out.splitlines()
    for line in (*printed[:5], printed[-1]):        # the report, and the score's last line
        assert f"\n{line}\n" in README, line


def test_what_the_readme_says_of_its_first_picture_is_what_was_measured():
    found = graded.read(ROOT / "benchmarks" / "results" / "languages")
    quick = {arm: statistics.mean(graded.learned(found, arm, graded.FAST)) for arm in RECIPES}
    last = {arm: graded.at_the_end(found, arm) for arm in RECIPES}
    text = " ".join(README.split())
    assert f"After {graded.FAST} steps (left)" in text and "six tenths" in text
    assert quick["full"] > 0.99
    assert {round(10 * quick[arm]) for arm in ("lora", "qlora")} == {6}
    assert round(4 * quick["houlsby"]) == 1 and max(quick["prefix"], quick["prompt"]) < 0.01
    for arm in ("full", "lora", "qlora", "houlsby"):                 # "all four know all of them"
        _, shares, is_flat = last[arm]
        assert is_flat and min(shares) > 0.99, arm
    assert [last[arm][2] for arm in ("prefix", "prompt")] == [False, False]
    assert max(last["prompt"][1]) < graded.BEGUN < min(last["prefix"][1])
    assert f"{max(steps for steps, *_ in last.values()):,} at most" in text
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
             "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen")
    assert f"{names[len([*(ROOT / 'notebooks').glob('*.ipynb')])]} notebooks" in text


def test_what_the_readme_says_of_the_study_of_smollm2_is_what_its_runs_say():
    found = tool_calls.read(ROOT / "benchmarks" / "results" / "tool_calls")
    text = " ".join(README.split())
    arms = {method: runs for method in RECIPES if (runs := tool_calls.report(found, method))}
    chosen = {method: tool_calls.chosen(found, method) for method in arms}
    assert chosen["lora"] == chosen["qlora"] == chosen["houlsby"]
    assert chosen["prompt"] == chosen["prefix"]
    assert "tried at the same rates, and take the same; so do prompts and prefixes." in text
    for other in ("qlora", "houlsby", "prefix", "prompt"):
        of = tool_calls.difference(arms["lora"], arms[other])
        assert (of.seeds[0] < 0 < of.seeds[1]) == (other != "prompt")   # so "not ranked", and "far"
        assert f"{100 * of.mean:+.1f} ({tool_calls.points(of.seeds)})" in text, other
    assert round(10 * arms["prefix"][0]["trainable"] / arms["lora"][0]["trainable"]) == 1
    *_, before, last = tool_calls.arc(found, "prompt", "exact_match").values()
    assert last > 2 * before and "still rising when the steps end" in text
    swept = [run for run in found if (run["split"], run["method"]) == ("sweep", "lora")]
    by_rate = {rate: sum(sum(run["validation"]) for run in swept if run["lr"] == rate) / 2
               for rate in (1e-3, 3e-3, 1e-2)}                     # of 100 requests, two seeds
    third, thrice = (by_rate[chosen["lora"]] - by_rate[rate] for rate in (1e-3, 1e-2))
    assert f"at a third of it LoRA loses {third:.1f} points of the validation" in text
    assert f"at three times it {thrice:.1f}." in text
    matches = [100 * statistics.mean(map(statistics.mean, (run["test"] for run in arms[method])))
               for method in arms if method != "prompt"]
    assert len(matches) == 4 and abs(third - (max(matches) - min(matches))) < 0.5    # "as much as"
    calls = [sum(map(tool_calls.is_call, run["answers"]))
             for runs in arms.values() for run in runs]
    assert calls.count(10) > 0.8 * len(calls) and min(calls) >= 7
    assert "all or nearly all get" in text
    kinds = [error["kind"] for method in ("lora", "qlora", "houlsby") for run in arms[method]
             for error in run["errors"]]
    assert kinds.count("values") > 0.9 * len(kinds) and "nearly all of LoRA's" in text
    lost = {method: [tool_calls.forgotten(found, run) for run in arms[method]] for method in arms}
    assert min(lost.pop("prefix")) > max(map(max, lost.values()))
    assert "at these rates a prefix forgets most" in text
    assert {*RECIPES} - {*arms} == {"full"} and "Full fine-tuning is still being run." in text


def test_who_cites_names_the_version_that_is_installed():
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    teaching = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")
    assert f" minipeft-{version}-py3-none-any.whl\n" in teaching
