"""Small random models, the same in every test; and, at the end, what each notebook took."""
from collections import Counter
from pathlib import Path

import pytest
import torch

from minipeft import GPT, GPTConfig
from minipeft.files import write_json

torch.set_flush_denormal(True)

SMALL = GPTConfig(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
UNEQUAL = [[5], [7, 7, 60, 0], list(range(3, 53, 2)), list(range(11))]     # 1, 4, 25 and 11 tokens


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


def pytest_terminal_summary(terminalreporter) -> None:
    seconds = Counter()
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        path = getattr(report, "nodeid", "").partition("::")[0]
        if path.endswith(".ipynb"):
            seconds[path] += getattr(report, "duration", 0)
    if seconds:
        terminalreporter.section("seconds of each notebook")
    for path, total in sorted(seconds.items()):
        terminalreporter.write_line(f"{total:6.1f}  {path}")
