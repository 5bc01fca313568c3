"""The table of claims as text, markdown and JSON."""
from dataclasses import dataclass

from .claim import Claim, Value
from .measured import Measurements


@dataclass(frozen=True)
class Row:
    """A claim and what its check found."""

    claim: Claim
    values: list[Value]

    @property
    def holds(self) -> bool:
        return all(value.holds for value in self.values)

    def as_dict(self) -> dict:
        c = self.claim
        return dict(id=c.id, claim=c.claim, verdict=c.verdict,
                    value="; ".join(value.text() for value in self.values),
                    source=c.source, notebook=c.notebook)


def evaluate(claims: tuple[Claim, ...], measurements: Measurements, progress=None) -> list[Row]:
    """Run every check; `progress` may wrap the claims (tqdm)."""
    return [Row(claim, claim.values(measurements))
            for claim in (progress(claims) if progress else claims)]


def text(rows: list[Row]) -> str:
    """A line a claim, and below it its numbers and where they are proved."""
    lines = []
    for row in rows:
        c = row.claim
        failed = "" if row.holds else "FAILED  "
        lines.append(f"{c.id:>3}  {failed}{c.verdict.upper():<22}{c.claim}")
        lines += [f"     {value.text()}" for value in row.values]
        lines += [f"     {c.why}", f"     [{c.source}; notebook {c.notebook}]", ""]
    return "\n".join([*lines, summary(rows)])


def summary(rows: list[Row]) -> str:
    verdicts = [row.claim.verdict for row in rows]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    failed = [str(row.claim.id) for row in rows if not row.holds]
    return f"{len(rows)} claims: {counts}" + (
        f"\nchecks that failed: {', '.join(failed)}" if failed else "; every check holds")


def markdown(rows: list[Row], stable: bool = False) -> str:
    """A page; `stable`: the same on every machine, of what was measured only the allowed range."""
    lines = ["| id | claim | verdict | value | why | source | notebook |", "|---" * 7 + "|"]
    for row in rows:
        values = "<br>".join(value.stable_text() if stable else value.text()
                             for value in row.values)
        cells = (str(row.claim.id), row.claim.claim, f"**{row.claim.verdict}**", values,
                 row.claim.why, row.claim.source, row.claim.notebook)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """benchmarks/CLAIMS.md."""
    return (f"# Claims\n\nMade by `python -m minipeft claims --page`, kept in step by "
            f"`tests/test_claims.py`. Computed values are exact; of measured ones this page has "
            f"the range in which the verdict stands, and `python -m minipeft claims` the number. "
            f"GB is 10^9 bytes, GiB 2^30.\n\n{markdown(rows, stable=True)}\n")
