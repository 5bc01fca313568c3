"""The course as a site: what the pages show, what they ask of the network, what stays folded."""
import contextlib
import functools
import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

import pytest

sites = pytest.importorskip("minipeft.course.site", exc_type=ImportError,
                            reason="pip install 'minipeft[course]'")
import minipeft
from minipeft.__main__ import main
from minipeft.course import assignment
from minipeft.course.assignment import course, known
from minipeft.files import read_json

bs4 = pytest.importorskip("bs4")          # the theme needs it
ROOT = Path(__file__).parent.parent


@functools.cache
def read(path: Path):
    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_sphinx_does_not_warn(site):
    assert read_json(site.with_name("warnings.json"), wanted=list) == []


def test_nothing_is_left_beside_the_site(site):
    """Where it is built, myst-nb puts a folder of pictures beside it."""
    assert {path.name for path in site.parent.iterdir()} == {"site", "warnings.json"}


def test_the_site_is_as_large_as_the_readme_says(site):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"`make site` writes the course into `site/` \((\d+) MB\)", readme)[1]
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size / 1e6 == pytest.approx(float(said), rel=0.1)      # stored runs are added meanwhile


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def article(path: Path):
    return read(path).find("article")


def squeezed(text: str) -> str:
    return "".join(text.replace("`", "").split())


# ---------------------------------------------------------------- what the pages show


def test_every_page_of_the_course_is_there_and_in_the_menu(site):
    names = {f"notebooks/{path.stem}.html" for path in course()} | {
        "notebooks/README.html", "benchmarks/CLAIMS.html", "benchmarks/RESULTS.html",
        "api/index.html", "api/lora.html", "api/nf4.dispatch.html", "differences.html"}
    assert names <= {path.relative_to(site).as_posix() for path in pages(site)}
    menu = {link["href"] for link in read(site / "index.html").select("nav a[href]")}
    assert names - {"api/lora.html", "api/nf4.dispatch.html"} <= menu


def test_a_notebooks_page_shows_every_line_that_is_stored_and_every_figure(site):
    for path in course():
        shown = article(site / "notebooks" / f"{path.stem}.html")
        text, pictures = squeezed(shown.get_text()), shown.find_all("img")
        outputs = [output for cell in read_json(path)["cells"]
                   for output in cell.get("outputs", [])]
        assert len(outputs) > 20
        for output in outputs:
            if output["output_type"] == "stream":
                assert squeezed("".join(output["text"])) in text
        assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs)


def test_claims_results_and_the_map_are_those_of_the_repository(site):
    for name, rows in (("benchmarks/CLAIMS", 37), ("benchmarks/RESULTS", 40),
                       ("notebooks/README", 14)):
        lines = (ROOT / f"{name}.md").read_text(encoding="utf-8").splitlines()
        table = [line for line in lines if line.startswith(("| ", "|-"))]
        shown = article(site / f"{name}.html").find_all("tr")
        assert len(shown) == sum(not line.startswith("|-") for line in table) >= rows
    assert len(article(site / "benchmarks/RESULTS.html").find_all("img")) >= 10


def documented(module) -> list[str]:
    """Docstrings of a module, and of its functions and classes with their methods."""
    own = [thing for name, thing in vars(module).items() if not name.startswith("_")
           and getattr(thing, "__module__", "") == module.__name__]
    methods = [member for thing in own if inspect.isclass(thing)
               for name, member in vars(thing).items()
               if not name.startswith("_") and inspect.isfunction(member)]
    found = [thing.__doc__ for thing in (module, *own, *methods)
             if inspect.isfunction(thing) or inspect.isclass(thing) or thing is module]
    made = tuple(f"{thing.__name__}(" for thing in own)         # by dataclass, where there is none
    return [inspect.cleandoc(doc) for doc in found if doc and not doc.startswith(made)]


@pytest.mark.parametrize("name", sites.HALL)
def test_docstrings_are_on_their_pages_as_they_are_with_formulas_in_lines_of_their_own(site, name):
    module = importlib.import_module(f"minipeft.{name}")
    shown = article(site / "api" / f"{name}.html")
    text, listings = squeezed(shown.get_text()), [pre.get_text() for pre in shown.find_all("pre")]
    for doc in documented(module):
        assert squeezed(doc) in text, doc
    for formula in re.findall(r"(?m)^ {4}(\S.*)$", inspect.cleandoc(module.__doc__)):
        assert any(formula in listing for listing in listings), formula


def test_the_public_names_are_those_of_the_package_and_lead_to_their_pages(site):
    index = article(site / "api/index.html")
    links = {link.get_text(): link["href"] for link in index.select("li a")}
    for name in minipeft.__all__:
        page, _, anchor = links[name].partition("#")
        assert read(site / "api" / page).find(id=anchor) is not None


@functools.cache
def anchors(path: Path) -> set[str]:
    return {tag.get("id", tag.get("name")) for tag in read(path).find_all(True)}


def test_links_inside_the_site_lead_somewhere(site):
    for path in pages(site):
        for link in read(path).select("a[href]"):
            target, _, anchor = link["href"].partition("#")
            if re.match(r"https?:", target):
                continue
            end = (path.parent / target).resolve() if target else path
            assert end.is_file(), (path, target)
            if anchor and end.suffix == ".html":
                assert anchor in anchors(end), link


# ---------------------------------------------------------------- solutions


def test_every_solution_is_behind_a_click_and_nowhere_else(site):
    for name, exercise in known().items():
        page = article(site / "notebooks" / f"{exercise.notebook}.html")
        solution = squeezed(exercise.solution)
        around = [pre.find_parent("details") for pre in page.find_all("pre")
                  if solution in squeezed(pre.get_text())]
        assert around and None not in around, name
        assert not any(details.has_attr("open") for details in around), name
        assert "SOLUTION" not in page.get_text()
        assert "Show the solution" in around[0].find("summary").get_text()


def test_a_notebook_is_offered_with_its_solutions_and_without(site):
    for path in course():
        page = site / "notebooks" / f"{path.stem}.html"
        links = {link.get_text(): (page.parent / link["href"]).resolve()
                 for link in article(page).select("a.download")}
        assert {link.name for link in links.values()} == {path.name}
        assert read_json(links["with its solutions"]) == assignment.solved(path)
        text = "\n".join("".join(cell["source"]) for cell in read_json(links["without"])["cells"])
        names = re.findall(r'NotDone\("(.*?)"\)', text)
        assert names == [name for name in known() if name.startswith(path.name[:2])]
        assert "BEGIN SOLUTION" not in text


# ---------------------------------------------------------------- offline


HOST = r"""\s*["'`]?(?:https?:)?//"""
LOADS = re.compile(rf"""<(?!a\s)[a-z-]+\s[^<>]*?\b(?:src|href|srcset|data|poster)\s*={HOST}
                     | @import\s+(?:url\()?{HOST} | url\({HOST}
                     | \b(?:fetch|import|importScripts)\({HOST}""", re.VERBOSE)


def test_what_a_load_is():
    for text in ('<script src="https://cdn.org/x.js">', "<link rel=x href='http://a.b/c.css'>",
                 '<img alt="" src="//a.b/c.png">', '@import "https://a.b/c.css";',
                 "@import url(http://a.b/c.css)", "src: url('https://a.b/font.woff2')",
                 'fetch("https://a.b/c.json")', "import('https://a.b/c.js')"):
        assert LOADS.search(text), text
    for text in ('<a href="https://arxiv.org">', '<img src="../a.png">', "url(data:image/png;x)",
                 "url(../a.woff2)", '<svg xmlns="http://www.w3.org/2000/svg">'):
        assert not LOADS.search(text), text


def test_nothing_in_the_site_is_loaded_from_another_host(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".js", ".css", ".svg")]
    assert len(files) > 80
    for path in files:
        found = LOADS.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(site)}: {found[0][-200:]}"


# ---------------------------------------------------------------- where it is written


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()}


@pytest.fixture
def quick(monkeypatch):
    """Sphinx and plotly are not asked: a page is enough."""
    made = iter(range(100))
    monkeypatch.setattr(sites, "lay_out", lambda sources, notebooks: None)
    monkeypatch.setattr(sites, "make_pages", lambda sources, out, scratch: (
        (out / "index.html").write_text(f"number {next(made)}"), [])[1])
    monkeypatch.setattr(sites.explore, "write", lambda path: None)


def test_a_folder_that_is_not_ours_is_refused_and_left_as_it_is(quick, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "film.avi").write_text("half of it")
    (tmp_path / "a file").write_text("text")
    before = contents(tmp_path)
    for out, status, said in (("mine", 1, "stays as it is; name another folder with --out"),
                              ("other", 1, "stays as it is; name another folder with --out"),
                              ("a file", 2, "must be a folder")):
        code = None
        with contextlib.suppress(SystemExit):
            code = main(["course", "site", "--out", str(tmp_path / out)])
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and code in (status, None)
        assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "mine", "other.part"]


def test_a_second_site_replaces_the_first_whole_also_after_an_interruption(quick, tmp_path):
    out = tmp_path / "deep" / "site"
    sites.build(out)
    (out / "old.html").write_text("of a notebook that is gone")
    part = out.with_name("site.part")           # as a killed process leaves it
    shutil.copytree(out, part)
    (part / ".replaced").mkdir()
    (part / ".replaced" / "index.html").write_text("older")
    sites.build(out)
    assert contents(out) == {sites.MARK: b"", "index.html": b"number 1"}
    assert [path.name for path in out.parent.iterdir()] == ["site"]


@pytest.mark.parametrize("error", [ValueError("no pages"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_the_earlier_site(quick, tmp_path, monkeypatch, error):
    sites.build(tmp_path / "site")
    before = contents(tmp_path)

    def fail(sources, out, scratch):
        (out / "index.html").write_text("half")
        raise error
    monkeypatch.setattr(sites, "make_pages", fail)
    with pytest.raises(type(error)):
        sites.build(tmp_path / "site")
    assert contents(tmp_path) == before


def test_a_site_that_stands_in_docs_is_no_source_of_the_next(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sites, "CHECKOUT", tmp_path)
    for name in (*sites.PAGES, "results.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sites, "RESULTS", tmp_path)
    before = contents(tmp_path / "docs")
    for name in ("_build/html", "_build/html.part"):    # Sphinx's usual place
        (tmp_path / "docs" / name / "downloads").mkdir(parents=True)
        (tmp_path / "docs" / name / sites.MARK).touch()
        (tmp_path / "docs" / name / "downloads" / "03_lora.ipynb").touch()
    sites.lay_out(tmp_path / "sources", [])
    copied = contents(tmp_path / "sources")
    assert {name for name in copied if "_build" in name} == set()
    assert before.items() <= copied.items()


def test_two_builds_at_once_do_not_mix(quick, tmp_path, monkeypatch):
    def second(sources, out, scratch):
        with pytest.raises(ValueError, match="another process is at work in .*site.part"):
            sites.build(tmp_path / "site")
        return []
    monkeypatch.setattr(sites, "make_pages", second)
    assert sites.build(tmp_path / "site") == []


def test_without_a_checkout_there_is_no_site(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assignment, "NOTEBOOKS", tmp_path)
    assert main(["course", "site", "--out", str(tmp_path / "site")]) == 1
    assert "they come with a checkout of the repository" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lacking", ["sphinx", "myst_nb", "sphinx_book_theme",
                                     "sphinx-mathjax-offline"])
def test_a_missing_package_is_named_in_one_line(lacking, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, lacking, None)
    for name in [name for name in sys.modules if name.startswith(f"{lacking}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "minipeft.course.site")
    monkeypatch.delattr(sys.modules["minipeft.course"], "site")
    assert main(["course", "site", "--out", str(tmp_path / "site")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'minipeft[course]'" in error
    assert list(tmp_path.iterdir()) == []
