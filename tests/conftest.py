"""Small random models, the same in every test; and, at the end, what each part of a run took."""
import multiprocessing
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minipeft import GPT, GPTConfig
from minipeft.files import write_json
from minipeft.tiny_world import documents

torch.set_flush_denormal(True)

SMALL = GPTConfig(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
UNEQUAL = [[5], [7, 7, 60, 0], list(range(3, 53, 2)), list(range(11))]     # 1, 4, 25 and 11 tokens


# For tests that need another process: where the system can, forked from one that has imported what
# they need once. A package that is not installed is passed over there.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(["minipeft.course.grade", "minipeft.course.notebook"])


@pytest.fixture
def forked(monkeypatch) -> None:
    """The package's worker processes start in that way, too."""
    monkeypatch.setattr("minipeft.lab.study.multiprocessing",
                        SimpleNamespace(get_context=lambda method: CONTEXT))


@pytest.fixture(scope="module")
def few_documents() -> None:
    """Enough for tests that ask what a run records, and not how much it has forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "validation", partial(documents.validation, n=4))
        yield


@pytest.fixture
def model() -> GPT:
    """Two layers, width 32, grouped-query heads."""
    torch.manual_seed(0)
    return GPT(SMALL)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The course as a site, built once; the warnings lie beside it."""
    from minipeft.course.site import build       # an extra, which the tests of the site need
    out = tmp_path_factory.mktemp("built") / "site"
    write_json(out.with_name("warnings.json"), build(out))
    return out


def parts(seconds: Counter) -> list[tuple[float, str]]:
    """Each notebook in order, the ten most expensive test files, the rest, and all together."""
    notebooks = sorted(path for path in seconds if path.endswith(".ipynb"))
    files = Counter({path: taken for path, taken in seconds.items() if path not in notebooks})
    largest = dict(files.most_common(10))
    rest = sum(files.values()) - sum(largest.values())
    return [*((seconds[path], path) for path in notebooks),
            *((taken, path) for path, taken in largest.items()),
            (rest, f"{len(files) - len(largest)} other test files"),
            (sum(seconds[path] for path in notebooks), "all notebooks"),
            (sum(files.values()), "all test files"), (sum(seconds.values()), "total")]


def pytest_terminal_summary(terminalreporter) -> None:
    seconds = Counter()
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if taken := getattr(report, "duration", 0):
            seconds[report.nodeid.partition("::")[0]] += taken
    if len(seconds) > 1:
        terminalreporter.section("seconds of the parts")
        for taken, part in parts(seconds):
            terminalreporter.write_line(f"{taken:7.1f}  {part}")
