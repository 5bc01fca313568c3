"""Draw docs/house.png, the picture of the package in README.md: `python docs/house.py`.

Floors, files and arrows are read from the sources, and written into the PNG as text as well:
tests/test_readme.py compares that text with the present house.
"""
import ast
import itertools
import sys
import textwrap
from pathlib import Path

import matplotlib
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_house import FLOORS, PACKAGE, ROOMS, SOURCES, imports, module_of

from minipeft.figures import COLOURS, LOOKS, STYLE, new_figure
from minipeft.files import replacing

PICTURE = Path(__file__).with_suffix(".png")
HALL = "the hall"
ROOMS_OF_THE_HALL = ("nf4",)           # entered by the files beside it
WIDTH, LEFT, RIGHT = 900, 82, 800      # in pixels, as README.md shows it; the lanes are outside
ROOM, GAP, HEAD, STOREY = 64, 22, 36, 33      # heights: rooms, between them, in the hall
FILE, TEXT_LEFT, LANE = 92, LEFT + 122, 15
INK = COLOURS[0]
TEXT = dict(color=INK, va="center")


# What is drawn


def floors() -> list[list[str]]:
    """From the top down; the door of the command line is not drawn."""
    return [row.split() for row in reversed(FLOORS.strip().splitlines()) if row != "__main__"]


def is_room(name: str) -> bool:
    return (PACKAGE / name).is_dir() and name not in ROOMS_OF_THE_HALL


def rooms() -> list[str]:
    return [name for row in floors() for name in row if is_room(name)]


def storeys() -> list[list[str]]:
    """The hall's files, and the rooms inside it, floor by floor from the top down."""
    rows = [[name for name in row if not is_room(name)] for row in floors()]
    return [row for row in rows if row]


def files(room: str) -> list[str]:
    found = {path.stem for path in (PACKAGE / room).iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    places = ROOMS[room].split()
    return sorted(found, key=lambda name: (places.index(name) if name in places else 0, name))


def sentence(name: str) -> str:
    """The first line of what a file, or the door of a room, says of itself."""
    path = PACKAGE / f"{name}.py"
    path = path if path.exists() else PACKAGE / name / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return ast.get_docstring(tree).splitlines()[0].replace("`", "").rstrip(".:")


def beside(row: list[str]) -> str:
    """Where one file has a floor to itself, there is room to say what it is."""
    return sentence(row[0]) if len(row) == 1 else ""


def arrows() -> set[tuple[str, str]]:
    """(room, room that it imports from), all files of the hall as one."""
    pairs = {(module_of(path)[0], other[0]) for path in SOURCES for other in imports(path)[0]}
    pairs = {tuple(name if is_room(name) else HALL for name in pair) for pair in pairs
             if not {"__main__", "__init__"} & set(pair)}
    return {pair for pair in pairs if pair[0] != pair[1]}


def description() -> str:
    """All that the picture says, as text."""
    lines = [f"{room}: {sentence(room)}: {' '.join(files(room))}" for room in rooms()]
    lines += [f"{HALL}: {' '.join(row)}{beside(row)}" for row in storeys()]
    return "\n".join(lines + [f"{a} -> {b}" for a, b in sorted(arrows())])


# The drawing, in pixels from the upper left corner


def box(ax, x: float, y: float, width: float, height: float, **look) -> None:
    ax.add_patch(FancyBboxPatch((x + 4, y + 4), width - 8, height - 8,
                                boxstyle="round,pad=4,rounding_size=6", **look))


def draw_room(ax, room: str, y: float, colour: str) -> None:
    box(ax, LEFT, y, RIGHT - LEFT, ROOM, facecolor="white", edgecolor=colour, linewidth=1.8)
    names = textwrap.fill("  ".join(files(room)), 88)
    ax.text(LEFT + 14, y + 19, f"{room}/", fontsize=10, weight="bold", **TEXT)
    ax.text(TEXT_LEFT, y + 19, sentence(room), fontsize=8.2, **TEXT)
    ax.text(TEXT_LEFT, y + 44, names, fontsize=7.6, family="monospace", **TEXT)


def draw_hall(ax, y: float, height: float) -> None:
    """The hall, its methods in the colours that they have in every figure."""
    box(ax, LEFT, y, RIGHT - LEFT, height, facecolor="#eef3f4", edgecolor=INK, linewidth=1.8)
    ax.text(LEFT + 14, y + 19, HALL, fontsize=10, weight="bold", **TEXT)
    ax.text(TEXT_LEFT, y + 19, "one idea, one file a method, and what they stand on", fontsize=8.2,
            **TEXT)
    for top, row in zip(itertools.count(y + HEAD, STOREY), storeys()):
        width = min(FILE, (RIGHT - LEFT - 22) / len(row) - 6)
        for x, name in zip(itertools.count(LEFT + 14, width + 6), row):
            draw_file(ax, name, x, top, width)
        ax.text(TEXT_LEFT, top + 12, beside(row), fontsize=8.2, **TEXT)


def draw_file(ax, name: str, x: float, y: float, width: float) -> None:
    method = name in LOOKS
    box(ax, x, y, width, 24, edgecolor="0.6", linewidth=0.8,
        facecolor=LOOKS[name]["color"] if method else "white")
    shown = f"{name}/" if name in ROOMS_OF_THE_HALL else name
    ax.text(x + width / 2, y + 12, shown, fontsize=7.6, family="monospace", va="center",
            ha="center", color="white" if method else INK, weight="bold" if method else "normal")


def arrow(ax, points: list[tuple[float, float]], colour: str) -> None:
    codes = [Line.MOVETO] + [Line.LINETO] * (len(points) - 1)
    ax.add_patch(FancyArrowPatch(path=Line(points, codes), color=colour, linewidth=1.2,
                                 arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0))


def draw_arrows(ax, tops: dict[str, float], colours: dict[str, str]) -> None:
    """To the next room straight down, to the hall on the left, to other rooms on the right."""
    names = list(tops)
    upward = [pair for pair in arrows() if names.index(pair[0]) > names.index(pair[1])]
    assert not upward, f"imports that lead up: {upward}"
    far = {pair for pair in arrows() if names.index(pair[1]) - names.index(pair[0]) > 1}
    for a, b in arrows() - far:
        x = (LEFT + RIGHT) / 2
        arrow(ax, [(x, tops[a] + ROOM), (x, tops[b])], colours[a])
    for side, edge in ((-1, LEFT), (1, RIGHT)):
        pairs = sorted((pair for pair in far if (pair[1] == HALL) == (side == -1)),
                       key=lambda pair: (names.index(pair[1]) - names.index(pair[0]), pair))
        for lane, (a, b) in enumerate(pairs, start=1):
            out = sum(source == a for source, _ in pairs[:lane])
            into = sum(target == b for _, target in pairs[:lane])
            start, end = tops[a] + ROOM - 12 * out, tops[b] + 12 * into
            x = edge + side * LANE * lane
            arrow(ax, [(edge, start), (x, start), (x, end), (edge, end)], colours[a])


def draw():
    colours = dict(zip(rooms(), itertools.cycle(COLOURS[:3])))
    tops = {room: 6 + i * (ROOM + GAP) for i, room in enumerate([*rooms(), HALL])}
    hall = HEAD + STOREY * len(storeys())
    height = tops[HALL] + hall + 6
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        figure, (ax,) = new_figure(figsize=(WIDTH / 100, height / 100))
        figure.subplots_adjust(0, 0, 1, 1)
        ax.set(xlim=(0, WIDTH), ylim=(height, 0))
        ax.axis("off")
        for room, colour in colours.items():
            draw_room(ax, room, tops[room], colour)
        draw_hall(ax, tops[HALL], hall)
        draw_arrows(ax, tops, colours)
    return figure


if __name__ == "__main__":
    with replacing(PICTURE) as part:
        draw().savefig(part, format="png", dpi=200, metadata={"Description": description()})
