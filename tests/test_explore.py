"""The interactive page: its data are what the stored files say, and it loads nothing."""
import itertools
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

plotly = pytest.importorskip("plotly", reason="plotly is in the optional extra minipeft[course]")
from minipeft.__main__ import main
from minipeft.course import explore
from minipeft.course.explore import levels, page, rates, runs
from minipeft.files import DATA, RESULTS

MORE = {"score"}                                   # of all other quantities less is better
LABELS = {"full": "FFT", "lora": "LoRA", "qlora": "QLoRA", "prompt": "Prompt", "prefix": "Prefix",
          "houlsby": "Houlsby"}


def lines(name: str) -> list[dict]:
    """A study's runs, each with its job beside it."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    return [{**line, **line["job"]} for line in map(json.loads, text.splitlines())]


def forgotten(run: dict) -> float:
    return sum(run["forgetting"][kind] for kind in ("story", "facts", "ferry")) / 3


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The page, with the weights of the tiny GPT, which are always there."""
    path = tmp_path_factory.mktemp("page") / "explore.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "smollm2", None)
        explore.write(path)
    return path


class Tags(HTMLParser):
    """(tag, attributes) of every element, and the text of each script and style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        if self.open in ("script", "style") and data.strip():
            self.texts.append(data)


@pytest.fixture(scope="module")
def html(written) -> Tags:
    return Tags(written.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(html) -> dict:
    """What the page's scripts read."""
    (text,) = [text for text in html.texts if text.startswith("{")]
    return json.loads(text)


def named(found: list[dict], name: str) -> dict:
    (one,) = [each for each in found if each["name"] == name]
    return one


def close(found, wanted) -> bool:
    return found == pytest.approx(wanted, rel=1e-12)        # means of floats, summed in any order


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("task", ["elicit", "novel", "languages"])
def test_the_runs_of_a_task_are_those_of_the_comparison(data, task):
    stored = json.loads((RESULTS / "compare" / "compare.json").read_text(encoding="utf-8"))
    shown, count = named(data["experiments"], f"Tiny GPT, {task}"), 0
    for run in (run for run in stored["runs"] if run["task"] == task):
        (row,) = [row for row in shown["runs"]
                  if (row["arm"], row["seed"]) == (LABELS[run["arm"]], run["seed"])]
        cost, form = stored["costs"][run["arm"]], ("merged" if run["arm"] == "lora"
                                                   else "as trained")
        assert (row["rate"], row["steps"]) == (run["lr"], run["steps"])
        assert (row["trained"], row["score"]) == (cost["trainable"], 100 * run["share"])
        assert row["memory"] == (cost["bytes"]["weights"] + cost["bytes"]["gradients"]
                                 + cost["bytes"]["optimizer"]
                                 + cost["bytes"]["activations"]) / 1024**2
        assert row["step"] == cost["step"]["median"]
        for phase in ("prefill", "decode"):
            assert row[phase] == cost["latency"][f"{form}, {phase}, 1"]["seconds"]["median"]
        assert close(row["forgetting"], forgotten(run))
        count += 1
    assert count == len(shown["runs"]) == 18


def test_what_is_held_at_the_end_is_the_run_with_most_steps(data):
    """No memory and no seconds: they were not measured there."""
    for name, K in (("languages", None), ("2 languages", 2), ("8 languages", 8)):
        shown = named(data["experiments"], f"Tiny GPT, {name}, at the end")
        assert shown["how"].keys() == {"trained", "score", "forgetting"}
        assert not any("memory" in row or "step" in row for row in shown["runs"])
        last = {}
        for run in lines("capacity/capacity.jsonl" if K else "languages/graded.jsonl"):
            if run["split"] == "report" and (run["K"] == K if K else
                                             (run["task"], run["size"]) == ("languages", None)
                                             and run["seed"] < 3):
                key = run["arm"], run["seed"]
                last[key] = max(last.get(key, run), run, key=lambda each: each["steps"])
        wanted = sorted((r["trainable"], r["seed"], r["lr"], r["steps"], 100 * r["share"])
                        for r in last.values())
        assert sorted((r["trained"], r["seed"], r["rate"], r["steps"], r["score"])
                      for r in shown["runs"]) == wanted


def test_more_seeds_and_sizes_are_those_of_the_study(data):
    shown = named(data["experiments"], "Tiny GPT, languages, 200 steps, more seeds and sizes")
    wanted = [(LABELS[r["arm"]] + (f", size {r['size']}" if r["size"] else ""), r["seed"],
               100 * r["share"]) for r in lines("languages/graded.jsonl")
              if (r["task"], r["steps"], r["split"]) == ("languages", 200, "report")]
    assert sorted((r["arm"], r["seed"], r["score"]) for r in shown["runs"]) == sorted(wanted)


def test_the_real_models_runs_are_those_of_its_study(data):
    stored = [run for run in lines("tool_calls/runs.jsonl")
              if run["job"]["split"] == "report" and run["job"]["steps"] == 180
              and (run["job"]["examples"], run["job"]["ordinary"]) == (2000, 0)]
    shown = named(data["experiments"], "SmolLM2-135M, tool calls, 180 steps")
    assert len(shown["runs"]) == len(stored) >= 9 and "prefill" not in shown["how"]
    costs = json.loads((RESULTS / "tool_calls/step_costs.json").read_text())["float32"]
    bases = {run["job"]["method"]: run["docstrings"] for run in lines("tool_calls/runs.jsonl")
             if not run["job"]["steps"]}
    for run in stored:
        job = run["job"]
        (row,) = [row for row in shown["runs"]
                  if (row["arm"], row["seed"]) == (LABELS[job["method"]], job["seed"])]
        cost = costs[job["method"]]
        assert (row["rate"], row["trained"]) == (job["lr"], run["trainable"])
        assert row["memory"] == (cost["weights"] + cost["training"]) / 1024**2
        assert row["step"] == sorted(cost["seconds"])[len(cost["seconds"]) // 2]
        assert close(row["score"], 100 - 100 * len(run["errors"]) / 200)
        before = bases.get(job["method"], bases["lora"])
        assert row["forgetting"] == run["docstrings"] - before


def test_the_study_of_the_real_model_is_shown_as_soon_as_it_has_runs(monkeypatch, tmp_path):
    """Two rates of a sweep, one of them diverged; the model before; a run that reports."""
    job = dict(method="lora", lr=1e-3, seed=0, steps=180, dtype="bfloat16", examples=2000,
               ordinary=0, requests=None, split="report")
    result = dict(version=1, trainable=10, machine={}, seconds_per_step=1.5, curve=[], loss=0.5,
                  bytes=dict(weights=2**20, training=2**21), validation=[1, 0, 0, 0],
                  docstrings=2.5, test=[1, 1, 0, 0], test_loss=0.6, errors=[], answers=[])
    diverged = dict(loss=None, validation=None, docstrings=None, test=None)
    before = result | dict(job=job | dict(steps=0, lr=0.0), docstrings=2.0)
    stored = [before, result | dict(job=job),
              *(result | more | dict(job=job | dict(lr=lr, seed=seed, split="sweep"))
                for lr, more in ((3e-3, {}), (1e-2, diverged)) for seed in (100, 101))]
    (tmp_path / "tool_calls").mkdir()
    (tmp_path / "tool_calls" / "runs.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in stored))
    cost = dict(weights=2**20, training=2**21, seconds=[9.0, 1.5, 1.0])
    (tmp_path / "tool_calls" / "step_costs.json").write_text(json.dumps(
        {"machine": {}, **dict.fromkeys(("float32", "bfloat16"), dict.fromkeys(LABELS, cost))}))
    for module in (runs, rates):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    (row,) = runs.study()["runs"]
    assert row == dict(arm="LoRA", seed=0, rate=1e-3, steps=180, trained=10, memory=3.0, step=1.5,
                       score=50.0, forgetting=0.5)
    sweep = rates.study()
    assert [(row["rate"], row["n"], row["loss"], row["score"], row["forgetting"])
            for row in sweep["means"]] == [(3e-3, 2, 0.5, 25.0, 0.5), (1e-2, 2, None, None, None)]


def test_an_experiment_without_runs_is_absent(monkeypatch, tmp_path):
    for module in (runs, rates):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    names = [each["name"] for each in (*runs.experiments(), *rates.sweeps())]
    assert names and not any("SmolLM2" in name or "8 languages" in name for name in names)


def test_rates_are_those_of_the_sweeps(data):
    """Every run, and the one rate that was chosen of those that were tried."""
    stored = json.loads((DATA / "learning_rates.json").read_text(encoding="utf-8"))
    for task, chosen in stored["chosen"].items():
        shown = named(data["sweeps"], f"Tiny GPT, {task}")
        tried = [run for run in stored["runs"] if run["task"] == task]
        assert sorted((r["arm"], r["rate"], r["seed"], r["score"], str(r["loss"]))
                      for r in shown["runs"]) == sorted(
            (LABELS[r["arm"]], r["lr"], r["seed"], 100 * r["share"], str(r["loss"]))
            for r in tried)
        assert shown["chosen"] == {LABELS[arm]: rate for arm, rate in chosen.items()}
    wanted = {8: 0, 32: 0}
    for run in lines("capacity/capacity.jsonl"):
        if run["split"] == "sweep":
            wanted[run["K"]] += 1
    assert {K: len(named(data["sweeps"], f"Tiny GPT, {K} languages")["runs"])
            for K in wanted} == wanted
    for sweep in data["sweeps"]:
        for arm, rate in sweep["chosen"].items():
            mine = [row["rate"] for row in sweep["runs"] if row["arm"] == arm]
            assert rate in mine or not mine, (sweep["name"], arm)


def test_means_are_of_all_seeds_or_none(data):
    for found, keys in ((data["experiments"], ("arm",)), (data["sweeps"], ("arm", "rate"))):
        for each in found:
            for mean in each["means"]:
                group = [r for r in each["runs"] if all(r[key] == mean[key] for key in keys)]
                assert len(group) == mean["n"] > 0
                for quantity in each["how"]:
                    values = [run[quantity] for run in group]
                    assert (mean[quantity] is None if None in values
                            else close(mean[quantity], statistics.fmean(values)))
            assert {row["arm"] for row in each["runs"]} <= data["looks"].keys()


# ---------------------------------------------------------------- the front


def dominated(one: tuple, points: list[tuple]) -> bool:
    return any(all(b <= a for a, b in zip(one, other)) and other != one for other in points)


def test_the_front_is_what_no_other_point_dominates():
    rng = random.Random(0)
    for n in range(30):
        for _ in range(30):         # few values: many points share one, and some are the same point
            points = [(rng.randrange(6), rng.randrange(6) / 7) for _ in range(n)]
            assert sorted(runs.front(points)) == [i for i, point in enumerate(points)
                                                  if not dominated(point, points)]


def test_the_fronts_on_the_page_are_those_of_its_means(data):
    for each in data["experiments"]:
        for x, y in itertools.permutations(each["how"], 2):
            points = {mean["arm"]: tuple(-mean[q] if q in MORE else mean[q] for q in (x, y))
                      for mean in each["means"] if None not in (mean[x], mean[y])}
            assert set(each["fronts"][x][y]) == {arm for arm, point in points.items() if not
                                                 dominated(point, list(points.values()))}
    assert {q for q, about in data["quantities"].items() if about["better"] == "more"} == MORE


# ---------------------------------------------------------------- levels


def test_the_levels_are_those_of_bitsandbytes_and_of_the_integers(data):
    """NF4 as in bitsandbytes' functional.py, and QLoRA's appendix E; FP4 as in its comments there:
    subnormal 0.0625 / 12, and 2, 3, 4, 6, 8, 12 of 12."""
    shown = {code["name"]: [level["value"] for level in code["levels"]]
             for code in data["weights"]["codes"]}
    fp4 = [0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
    wanted = {"INT4": [i / 7 for i in range(-8, 8)],
              "FP4": sorted([sign * value / 12 for value in fp4 for sign in (-1, 1)]),
              "NF4": [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
                      -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
                      0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
                      0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                      0.7229568362236023, 1.0]}
    assert shown.keys() == wanted.keys()
    for name, values in wanted.items():
        assert shown[name] == torch.tensor(values).tolist(), name               # as float32


def test_shares_histogram_and_errors_are_those_of_the_nearest_level(data):
    """Every weight of the tiny GPT's linears, over the largest of its 64, by search among all."""
    shown = data["weights"]
    state = load_file(DATA / "tiny_gpt_seed0.safetensors")
    weight = torch.cat([t.float().flatten() for name, t in state.items()
                        if name.endswith("_proj.weight")]).view(-1, 64)
    assert shown["n"] == weight.numel() and "tiny GPT" in shown["source"]
    absmax = weight.abs().amax(dim=1, keepdim=True)
    scaled = (weight / absmax).flatten()
    bars = torch.tensor([((scaled >= -1 + i / 80) & ((scaled < -1 + (i + 1) / 80) | (i == 159)))
                         .sum() for i in range(160)])
    # a weight that lies on an edge may fall to either side of it by rounding
    assert (bars - torch.tensor(shown["histogram"]) * shown["n"]).abs().max() < 30
    for code in shown["codes"]:
        values = torch.tensor([level["value"] for level in code["levels"]])
        nearest = torch.cat([(part[:, None] - values).abs().argmin(dim=1)
                             for part in scaled.split(2**16)])
        counts = Counter()                                 # FP4's two zeros are one value here
        for level, count in zip(code["levels"], nearest.bincount(minlength=16).tolist()):
            counts[level["value"]] += level["share"] * shown["n"] - count
        assert sum(level["share"] for level in code["levels"]) == pytest.approx(1, abs=1e-12)
        # of 800 thousand; half of the largest is a tie in INT4, and in float16 no rare number
        assert max(map(abs, counts.values())) < 300
        error = (values[nearest].view(-1, 64) * absmax - weight).double().square().sum()
        assert code["error"] == pytest.approx((error / weight.double().square().sum()).item(),
                                              rel=1e-5)                   # float32 products
    assert [code["levels"][0]["share"] == 0 for code in shown["codes"]] == [False, True, False]


# ---------------------------------------------------------------- the page


def test_nothing_in_the_page_is_loaded_from_elsewhere(html):
    """No element names a source, and the page's own scripts have no word that loads. plotly.js has
    such words, and addresses in its texts, for maps and uploads; these pictures are of the kinds
    scatter and bar, and the page's first rule lets the browser ask no host, whatever asks."""
    for tag, attributes in html.tags:
        assert not {"src", "srcset", "action", "data", "poster"} & attributes.keys(), tag
        assert tag in ("a", "link") or "href" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
        assert tag not in ("iframe", "object", "embed", "base")
    library = plotly.offline.get_plotlyjs()
    own = [text for text in html.texts if text != library]
    assert len(own) == len(html.texts) - 1 == 3                         # style, data, script
    for word in ("http:", "https:", "//cdn", "fetch", "XMLHttp", "import", "WebSocket", "Beacon",
                 "EventSource", "url(", "new Image", "eval", "Function("):
        assert not any(word in text for text in own if not text.startswith("{")), word
    kinds = {line.split('type: "')[1].split('"')[0] for text in own for line in text.splitlines()
             if 'type: "' in line}
    assert kinds == {"bar", "data"}             # data: of error bars; without a type it is scatter
    rule = dict(html.tags)["meta"]
    (rule,) = [a["content"] for tag, a in html.tags if tag == "meta" and "http-equiv" in a]
    assert rule.startswith("default-src 'none';") and "http" not in rule


def test_no_text_of_a_result_ends_the_data_early(monkeypatch):
    text = {"name": "</script><script src='https://example.org'></script><!-- &lt; é"}
    monkeypatch.setattr(page, "data", lambda: text)
    tags = Tags(page.html())
    assert [json.loads(each) for each in tags.texts if each.startswith('{"name')] == [text]
    assert [attributes for tag, attributes in tags.tags if tag == "script"] == [
        {}, {"type": "application/json", "id": "data"}, {}]


def test_every_control_has_a_label_and_every_picture_a_name_and_a_table(written):
    text = written.read_text(encoding="utf-8").partition("<script>")[0]
    for part in text.split("<label>")[1:]:
        assert part.partition("</label>")[0].count("id=") == 1
    controls = text.count("<select") + text.count("<input")
    assert text.count("<label>") == controls == 8
    tags = Tags(text).tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    pictures = [attributes for _, attributes in tags if attributes.get("role") == "img"]
    assert len(pictures) == 3
    for picture in pictures:
        assert {picture["aria-labelledby"], picture["aria-describedby"]} <= ids
        assert f"{picture['id']}-table" in ids
    assert text.count("<details>") == 3


def test_the_command_writes_the_page_and_replaces_only_its_own(written, monkeypatch, tmp_path,
                                                               capsys):
    monkeypatch.setattr(page, "html", lambda: written.read_text(encoding="utf-8"))
    path = tmp_path / "new" / "explore.html"
    for _ in range(2):
        assert main(["course", "explore", "--out", str(path)]) == 0
        assert capsys.readouterr().out == f"written: {path}\n"
        assert path.read_bytes() == written.read_bytes()
    path.write_text("<p>mine</p>")
    for there in (path, path.parent):
        assert main(["course", "explore", "--out", str(there)]) == 1
        assert capsys.readouterr().err == (
            f"minipeft course: {there} is there, and is not a page that this command has written; "
            f"move it away, or name another file with --out\n")
    assert path.read_text() == "<p>mine</p>" and list(path.parent.iterdir()) == [path]


def test_a_damaged_result_is_named_and_leaves_the_page_as_it_was(written, monkeypatch, tmp_path,
                                                                 capsys):
    broken = tmp_path / "tool_calls" / "step_costs.json"
    broken.parent.mkdir()
    shutil.copy(RESULTS / "tool_calls" / "runs.jsonl", broken.parent)
    broken.write_text('{"machine": {}, "float32": {}}')
    path = tmp_path / "explore.html"
    shutil.copy(written, path)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    assert main(["course", "explore", "--out", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"minipeft course: {broken} lacks bfloat16; it has machine, float32; make it again with: "
        f"python benchmarks/tool_calls_study.py\n")
    assert path.read_bytes() == written.read_bytes()


def test_without_plotly_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("minipeft.course.explore", "minipeft.course.explore.page"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("minipeft.course.explore")
    assert main(["course", "explore", "--out", str(tmp_path / "explore.html")]) == 1
    assert capsys.readouterr().err == (
        "minipeft course: the interactive page is drawn by plotly; install it with: "
        "pip install 'minipeft[course]', or: pip install plotly\n")
    assert list(tmp_path.iterdir()) == []


# Chooses every experiment and every two quantities, and counts.
EVERYTHING = """<script>
const choose = (id, value) => {
  if (find(id).type === "checkbox") find(id).checked = value; else find(id).value = value;
  find(id).dispatchEvent(new Event("change"));
  return new Promise(done => setTimeout(done, 20));            // as a person, wait for the picture
};
const values = id => [...find(id).options].filter(o => !o.disabled).map(o => o.value);
async function everything() {
  let drawn = 0;
  for (const i of values("runs-of")) {
    await choose("runs-of", i);
    for (const x of values("x")) {
      await choose("x", x);
      for (const y of values("y").filter(other => other > x)) {
        await choose("y", y);
        drawn += find("runs").data.length > 1 && find("x").value === x && find("y").value === y;
      }
    }
    for (const log of [true, false]) { await choose("x-log", log); await choose("y-log", log); }
  }
  for (const i of values("rates-of")) {
    await choose("rates-of", i);
    for (const y of values("rates-y")) {
      await choose("rates-y", y);
      drawn += find("rates").data.length > 0;
    }
  }
  document.title = `drawn: ${drawn}`;
}
everything();
</script></body>"""


@pytest.mark.long
def test_a_browser_draws_every_choice_without_a_complaint(written, data, tmp_path):
    """A request that the page's rule forbids would be a complaint, too."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    tried = tmp_path / "tried.html"
    text = written.read_text(encoding="utf-8")
    tried.write_text(text.replace("</body>", EVERYTHING), encoding="utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom",
         tried.as_uri()], capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    choices = [math.comb(len(each["how"]), 2) for each in data["experiments"]]
    assert f"<title>drawn: {sum(choices) + sum(len(each['how']) for each in data['sweeps'])}" in (
        done.stdout)
    assert done.stdout.count("<tr>") > 16 * 3
