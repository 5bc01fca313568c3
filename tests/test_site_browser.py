"""The site in a real browser: every page, as a file and from a server, wide and narrow, light and
dark. Then pages with one fault each, so that what looks for faults is seen to find them."""
import functools
import http.server
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from test_site import pages

driver = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                          reason="pip install axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.long, pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; Debian has it: apt-get install chromium")]

NARROW = {"width": 380, "height": 800}
# WCAG 2.1 A and AA: contrast, alternative texts, names of buttons and links, language, ...
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
         "resultTypes": ["violations"], "preload": False}
# One page of each kind, and the notebooks with the most formulas, figures, tables and folded parts:
# axe takes up to half a minute for one of them.
JUDGED = ("index.html", "search.html", "explore.html", "notebooks/README.html",
          "notebooks/05_nf4.html", "notebooks/10_comparison.html", "benchmarks/CLAIMS.html",
          "benchmarks/RESULTS.html", "api/index.html", "api/lora.html",
          "_modules/minipeft/lora.html", "own_model.html")
DRAWN = "() => !window.MathJax || MathJax.startup?.promise?.then(() => true)"
STILL = "() => document.getAnimations().every(one => one.playState !== 'running')"
LOOK = """() => {
    const found = [];
    for (const image of document.images)
        if (!image.complete || image.naturalWidth === 0) found.push("no image: " + image.src);
    for (const math of document.querySelectorAll(".math"))
        if (!math.querySelector("svg") || math.querySelector("[data-mml-node=merror]"))
            found.push("no formula: " + math.textContent);
    const wide = document.documentElement.scrollWidth - innerWidth;
    if (wide > 0) found.push(`it scrolls sideways by ${wide} pixels`);
    return found;
}"""
COUNT = """() => [document.querySelectorAll(".math svg").length,
                  document.querySelectorAll("article img").length]"""


@pytest.fixture(scope="module")
def browser():
    with driver.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module", params=["file", "server"])
def place(request, site):
    """The address below which the site lies."""
    if request.param == "file":
        yield site.as_uri()
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(
            Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Tab:
    """Opens pages and keeps what went wrong; a request to another machine is stopped."""

    def __init__(self, browser, **how) -> None:
        self.page = browser.new_context(**how).new_page()
        self.page.set_default_timeout(120_000)          # milliseconds; a machine may be busy
        self.faults: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.note(said.text))
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on("requestfailed", lambda request: self.note(f"no answer: {request.url}"))
        self.page.context.route(lambda url: urlsplit(url).hostname not in (None, "127.0.0.1"),
                                self.stop)

    def note(self, fault: str) -> None:
        self.faults.append(f"{self.page.url}: {fault}")

    def stop(self, route) -> None:
        self.note(f"it asks {urlsplit(route.request.url).hostname}")
        route.abort()

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_function(DRAWN)
        for fault in self.page.evaluate(LOOK):
            self.note(fault)

    def judge(self, address: str) -> None:
        """By axe, with all that is folded open, and has ended to fade in."""
        self.page.goto(address)
        self.page.wait_for_function(DRAWN)
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        self.page.wait_for_function(STILL)
        for rule in axe.Axe().run(self.page, options=RULES).response["violations"]:
            for node in rule["nodes"]:
                self.note(f"{rule['id']}: {node['html'][:200]} {node['failureSummary'][:200]}")


def names(site: Path) -> list[str]:
    return [path.relative_to(site).as_posix() for path in pages(site)]


@pytest.mark.parametrize("screen", [{}, {"viewport": NARROW}], ids=["wide", "narrow"])
def test_every_page_loads_whole_asks_nobody_and_does_not_scroll_sideways(browser, site, place,
                                                                         screen):
    tab, formulas, figures = Tab(browser, **screen), 0, 0
    for name in names(site):
        tab.open(f"{place}/{name}")
        counted = tab.page.evaluate(COUNT)
        formulas, figures = formulas + counted[0], figures + counted[1]
    assert tab.faults == []
    # fourteen notebooks, fifteen files of the hall and four of NF4 with their sources, claims, ...
    assert len(names(site)) > 60 and formulas > 500 and figures > 85


def test_search_finds_double_quantization(browser, place):
    tab = Tab(browser)
    tab.open(f"{place}/index.html")
    tab.page.locator(".search-button__button:visible").first.click()
    tab.page.locator("input[name=q]:visible").fill("double quantization")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#search-results li a")
    found = [link.get_attribute("href") for link in tab.page.locator("#search-results li a").all()]
    assert any("notebooks/06_qlora.html" in link for link in found), found
    assert tab.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_alternative_texts_and_names_hold(browser, site, scheme):
    tab = Tab(browser, color_scheme=scheme)
    for name in JUDGED:
        tab.judge(f"{site.as_uri()}/{name}")
    shown = tab.page.evaluate("document.documentElement.dataset.theme")
    assert shown == scheme and tab.faults == []


BROKEN = {'<script>console.error("oh")</script>': "oh",
          "<script>nowhere()</script>": "nowhere is not defined",
          '<script src="_static/nowhere.js"></script>': "no answer",
          '<img alt="a" src="https://example.org/a.png">': "it asks example.org",
          '<link rel="stylesheet" href="http://example.org/a.css">': "it asks example.org",
          '<img alt="a" src="nowhere.png">': "no image",
          r'<span class="math">\(\frac{\)</span>': "no formula",
          '<span class="math">x</span>': "no formula",
          '<p style="width: 400px">too wide</p>': "it scrolls sideways by",
          '<p style="color: #999; background: #fff">pale</p>': "color-contrast",
          '<img src="_static/file.png">': "image-alt",
          '<a href="index.html"></a>': "link-name"}


@pytest.mark.parametrize("fault, said", BROKEN.items(), ids=BROKEN.values())
def test_a_page_with_one_fault_is_found(browser, site, fault, said):
    broken = site / "broken.html"
    text = (site / "index.html").read_text(encoding="utf-8")
    broken.write_text(text.replace("</article>", f"{fault}</article>"), encoding="utf-8")
    tab = Tab(browser, viewport=NARROW)
    tab.open((site / "index.html").as_uri())
    tab.judge((site / "index.html").as_uri())
    assert tab.faults == []
    try:
        tab.open(broken.as_uri())
        tab.judge(broken.as_uri())
    finally:
        broken.unlink()
    assert any(said in found for found in tab.faults), tab.faults
