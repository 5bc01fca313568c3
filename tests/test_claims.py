"""Every claim of the lesson is checked, and no entry gets into the table without a check."""
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from minipeft.__main__ import main
from minipeft.course import claims
from minipeft.course.claims import CLAIMS, VERDICTS, Claim, exact, fact, report, within
from minipeft.course.claims.measured import energy_rank
from minipeft.course.claims.observed import at_equal_loss

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
ENTRY = dict(id=99, claim="water is wet", said="everywhere", verdict="true", why="it is",
             source="computed here", notebook="00_the_bottleneck: The checkpoint")


@pytest.fixture(scope="module")
def measurements():
    return claims.stored()


@pytest.fixture(scope="module")
def rows(measurements):
    return report.evaluate(CLAIMS, measurements)


@pytest.mark.parametrize("number", range(len(CLAIMS)), ids=lambda n: str(n + 1))
def test_the_numbers_behind_a_claim_are_where_its_verdict_needs_them(number, rows):
    for value in rows[number].values:
        assert value.holds, f"claim {rows[number].claim.id}: {value.text()}"


@pytest.mark.parametrize("number", range(len(CLAIMS)), ids=lambda n: str(n + 1))
def test_every_range_could_be_missed(number, rows):
    """A check whose range holds every number checks nothing."""
    for value in rows[number].values:
        assert value.low > float("-inf") or value.high < float("inf"), value
        wrong = (not value.low) if isinstance(value.low, bool) else value.low - 1
        assert not dataclasses.replace(value, found=wrong).holds


def test_ids_count_up_from_one_and_verdicts_are_the_four_words():
    assert [claim.id for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))
    assert {claim.verdict for claim in CLAIMS} == set(VERDICTS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: str(c.id))
def test_a_claim_names_the_heading_that_proves_it(claim):
    name, heading = claim.notebook.split(": ", maxsplit=1)
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    assert heading in headings(path), f"{path.name} has no heading {heading!r}"


def test_the_course_lists_with_each_notebook_the_claims_that_it_proves():
    page = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    for name, listed in re.findall(r"\]\((\w+)\.ipynb\) .*\| ([\d, ]*)\|$", page, re.M):
        proved = [claim.id for claim in CLAIMS if claim.notebook.startswith(name)]
        assert [int(n) for n in listed.replace(",", " ").split()] == proved, name


def headings(path: Path) -> list[str]:
    """Without their numbers: "3. The method" and "3 · The method" are "The method"."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return [re.sub(r"^\d+(\.| ·) ", "", found)
            for found in re.findall(r"(?m)^#+ (?:# )?(.*?)\s*$", text)]


def test_an_entry_without_a_check_cannot_be_made():
    with pytest.raises(TypeError, match="claim 99 needs a check"):
        Claim(**ENTRY, check=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'check'"):
        Claim(**ENTRY)
    with pytest.raises(ValueError, match="lacks its source"):
        Claim(**ENTRY | {"source": ""}, check=lambda m: [])
    with pytest.raises(ValueError, match="must be one of true, conditionally true"):
        Claim(**ENTRY | {"verdict": "maybe"}, check=lambda m: [])
    with pytest.raises(ValueError, match="returned no value"):
        Claim(**ENTRY, check=lambda m: []).values(None)


def test_a_wrong_expected_value_fails_the_command(monkeypatch, measurements, capsys):
    good, bad = (Claim(**ENTRY, check=lambda m, wanted=wanted: [exact("1", 1, 1),
                                                                exact("7 x 6", 42, wanted)])
                 for wanted in (42, 43))
    monkeypatch.setattr(claims, "stored", lambda: measurements)
    monkeypatch.setattr(claims, "CLAIMS", (good,))
    assert main(["claims"]) == 0
    monkeypatch.setattr(claims, "CLAIMS", (good, bad))
    assert main(["claims"]) == 1
    out, err = capsys.readouterr()
    assert "7 x 6: 42 (WANTED 43)" in out and "the checks of claims 99 failed" in err


def test_values_say_what_was_found_and_what_was_wanted():
    assert exact("bytes", 4_194_304, 4_194_304).text() == "bytes: 4,194,304"
    assert exact("share", 0.06220593, 0.0622, "%", 5e-5).text() == "share: 0.0622059 %"
    assert fact("it fits", True, wanted=False).text() == "it fits: yes (WANTED no)"
    slow = within("latency", 12.3456, 5, float("inf"), "%")
    assert slow.text() == "latency: 12.3 %"
    assert slow.stable_text() == "latency: at least 5 % (measured)"
    assert not dataclasses.replace(slow, found=float("nan")).holds


def test_json_has_the_keys_and_markdown_a_row_for_every_claim(rows, monkeypatch, capsys):
    monkeypatch.setattr(report, "evaluate", lambda *args: rows)
    assert main(["claims", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == len(CLAIMS) >= 32
    assert all(set(entry) == {"id", "claim", "verdict", "value", "source", "notebook"}
               and all(entry.values()) for entry in entries)
    assert main(["claims", "--markdown"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(CLAIMS) + 2
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_the_stored_page_is_what_the_command_makes(rows):
    stored = (ROOT / "benchmarks" / "CLAIMS.md").read_text(encoding="utf-8")
    assert stored == report.page(rows), "python -m minipeft claims --page > benchmarks/CLAIMS.md"


def test_missing_measurements_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m minipeft claims --remeasure"):
        claims.stored(tmp_path)


def test_the_energy_rank_counts_singular_directions():
    assert energy_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == 1       # 9 of 10 parts
    assert energy_rank(torch.diag(torch.tensor([2.9, 1.0, 0.0]))) == 2       # 8.41 of 9.41
    assert energy_rank(torch.eye(5)) == 5                                    # 4 of 5 are too few


def test_wrong_usage_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["claims", "--seeds", "0"])
    assert stop.value.code == 2
    assert "--seeds: must be a whole number, at least 1" in capsys.readouterr().err


def test_forgetting_is_compared_between_rates_that_learned_as_much():
    """Of ours the one that solves and forgets least (2), of theirs the least at its loss (0.5)."""
    rows = [(1.0, 0.01, 3), (1.0, 0.05, 2), (0.9, 0.3, 1)], [(1.0, 0.04, 0.5), (1.0, 0.05, 0.7),
                                                             (1.0, 0.06, 0.1)]
    ours, theirs = ([dict(zip(("share", "loss", "forgetting"), row)) for row in of] for of in rows)
    assert at_equal_loss(ours, theirs) == 1.5
