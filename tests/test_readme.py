"""Published tables are what the stored results say."""
import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks/results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_page_is_what_the_stored_results_make(maker):
    assert (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8") == maker.page()


def test_the_table_of_the_readme_is_that_of_the_stored_comparison(maker):
    assert maker.readme(README) == README


def test_links_lead_to_files():
    for page in (ROOT / "README.md", ROOT / "benchmarks/RESULTS.md", ROOT / "notebooks/README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_python_example_prints_what_the_readme_says():
    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert f"# {out.getvalue().strip()}" == code.strip().splitlines()[-1]


def test_every_notebook_and_module_is_on_the_map():
    for path in [*(ROOT / "notebooks").glob("*.ipynb")]:
        assert path.name in README, path.name
    for path in (ROOT / "minipeft").glob("*.py"):
        if not path.name.startswith("__"):
            assert f"`{path.name}`" in README or f"/{path.name}`" in README, path.name
