"""The page: page.html with plotly.js and the stored results in it.

    write(Path("explore.html"))

Nothing in it is loaded from elsewhere: its first lines forbid the browser to ask any host.
"""
from pathlib import Path

from matplotlib.colors import to_hex, to_rgb

from ...figures import look
from ...files import to_json, write_text
from ...lab import capacity, graded
from ...lab.plot import shade
from ...recipes import RECIPES
from .levels import levels
from .rates import sweeps
from .runs import QUANTITIES, experiments, sized

try:
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError("the interactive page is drawn by plotly; install it with: "
                      "pip install 'minipeft[course]', or: pip install plotly") from error

TEMPLATE = Path(__file__).with_name("page.html")
OURS = '<meta name="generator" content="minipeft course explore">'       # stands in page.html
LIBRARY, DATA = "/* plotly.js */", "/* data */"                          # so do these two
SYMBOLS = {"s": "square", "o": "circle", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
           "P": "cross", "X": "x"}                   # matplotlib's markers, and plotly's
FORMS = ("-open", "-open-dot")                       # of a method's other sizes
DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}


def write(path: Path) -> None:
    """Write the page; FileExistsError, with the file as it was, if `path` is no page of ours."""
    check_replaceable(path)
    text = html()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def check_replaceable(path: Path) -> None:
    """FileExistsError unless nothing is at `path`, or a page that this module has written."""
    if path.exists() and not (path.is_file() and begins_as_ours(path)):
        raise FileExistsError(f"{path} is there, and is not a page that this command has written; "
                              f"move it away, or name another file with --out")


def begins_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return OURS.encode() in file.read(1000)


def html() -> str:
    """The page, nearly all of it plotly.js."""
    found = to_json(data(), TEMPLATE).replace("<", "\\u003c")         # no tag ends within it
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace(DATA, found).replace(LIBRARY, get_plotlyjs())


def data() -> dict:
    """All that the page says in numbers."""
    return dict(quantities={key: dict(name=name, better=better, scale=scale)
                            for key, (name, better, scale) in QUANTITIES.items()},
                looks=looks(), experiments=experiments(), sweeps=sweeps(), weights=levels())


def looks() -> dict[str, dict]:
    """What the marks and lines of each arm look like, by its label."""
    return ({recipe.label: drawn(look(method)) for method, recipe in RECIPES.items()}
            | {arm.label: drawn(shade(name), "-dot" if name.endswith("-qv") else "")
               for name, arm in capacity.ARMS.items()
               if arm.label not in {recipe.label for recipe in RECIPES.values()}}
            | {sized(dict(arm=arm, size=size)): drawn(look(arm), form)
               for arm in RECIPES for (_, size), form in zip(
                   [other for other in graded.OTHER_SIZES if other[0] == arm], FORMS)})


def drawn(style: dict, form: str = "") -> dict:
    """matplotlib's words for a style in plotly's; `dark`: the colour on a dark page."""
    line = style["linestyle"]
    dash = DASHES[line] if isinstance(line, str) else ",".join(f"{2 * part}px" for part in line[1])
    return dict(colour=to_hex(style["color"]), dark=to_hex(paler(style["color"])), dash=dash,
                symbol=SYMBOLS[style["marker"]] + form)


def paler(colour) -> tuple[float, ...]:
    """Half way to white, unless it is nearer to it already."""
    found = to_rgb(colour)
    return found if sum(found) > 1.5 else tuple((part + 1) / 2 for part in found)
