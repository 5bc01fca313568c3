"""The exercises of a notebook, each with what it needs of the cells before it, and nothing else.

    found = exercises(path)                  in the order of the notebook
    judge(found[2], ["    return 1.0"])      of each answer: PASSES, or how the check refused it

An exercise is a markdown cell that says **Exercise N**, the code cell with the markers, and the
code cells after it. What it needs are the cells that give the names it uses a value or an entry,
and so on back; a cell that changes something by a call alone is not among them, so an exercise must
not depend on one.
"""
import ast
import builtins
import io
import re
import symtable
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent, indent

import matplotlib

from ..files import read_json

PASSES = "passes"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
TITLE = re.compile(r"^(?:\*\*|### )(?:Exercise )?(\d+)[.*· ]", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    notebook: str
    number: int
    statement: str
    place: int                       # among the notebook's cells, of the one with the markers
    earlier: tuple[str, ...]         # sources of the code cells above it
    before: str                      # of the cell with the markers: what stands above them,
    solution: str                    # between,
    after: str                       # and below
    check: tuple[str, ...]           # the code cells after it

    @property
    def name(self) -> str:
        """As in "03.2"."""
        return f"{self.notebook[:2]}.{self.number}"

    @property
    def points(self) -> int:
        """1 to 3: the full dots of its difficulty."""
        return max(1, self.statement.partition("\n")[0].count("●"))

    @property
    def checks(self) -> tuple[str, ...]:
        """All that comes after the answer: `after` too, unless it belongs to a function."""
        own = self.after.strip() != "" and not self.after.lstrip("\n")[0].isspace()
        return (self.after.strip(),) * own + self.check

    @property
    def needs(self) -> list[str]:
        """Of the cells above it those that its solution and check rest on."""
        return needed(self.earlier, self.answered())

    def answered(self, answer: str | None = None) -> str:
        """The cells from the answer on, which stands in place of the solution's lines (None: the
        solution), and as far in."""
        margin = re.match(" *", self.solution)[0]
        given = self.solution if answer is None else indent(dedent(answer), margin) + "\n"
        own = self.before + given + self.after
        return "\n\n".join([own, *self.check])


def exercises(path: Path) -> list[Exercise]:
    """ValueError for a notebook whose markers do not pair, or one without a number above it."""
    return exercises_in(path.stem, read_json(path, "restore the notebook", keys={"cells": list})
                        ["cells"])


def exercises_in(notebook: str, cells: list[dict]) -> list[Exercise]:
    """Those in the cells of a notebook of this name; raises as `exercises` does."""
    code = [(i, "".join(cell["source"])) for i, cell in enumerate(cells)
            if cell["cell_type"] == "code"]
    found = []
    for place, (i, source) in enumerate(code):
        if BEGIN in source or END in source:
            text = "\n\n".join("".join(cell["source"]) for cell in cells[:i]
                               if cell["cell_type"] == "markdown")
            statement = text[max((m.start() for m in TITLE.finditer(text)), default=len(text)):]
            check = [later for j, later in code[place + 1:] if not any(
                TITLE.search("".join(cell["source"])) or "## " in "".join(cell["source"])
                for cell in cells[i:j] if cell["cell_type"] == "markdown")]
            earlier = tuple(source for _, source in code[:place])
            number, parts = parsed(notebook, statement, source)
            found.append(Exercise(notebook, number, statement, i, earlier, *parts, tuple(check)))
    return found


def parsed(notebook: str, statement: str, source: str) -> tuple[int, tuple[str, str, str]]:
    """The exercise's number, and what stands before, between and after the markers."""
    number = TITLE.findall(statement)
    parts = re.fullmatch(rf"(.*?)[ ]*{BEGIN}\n(.*?)[ ]*{END}(.*)", source, re.DOTALL)
    if not number or parts is None:
        raise ValueError(f"{notebook}.ipynb: an exercise needs a number above it and one pair of "
                         f"{BEGIN} and {END}: {source[:60]!r}")
    return int(number[-1]), parts.groups()


def judge(exercise: Exercise, answers: list[str | None]) -> list[str]:
    """Of each answer PASSES, or the error that it or the check ends with: "AssertionError: ...".

    It runs the notebook's code and the answers' in this process and in the working directory that
    the notebook has, its own folder: give it a process that has nothing to lose.
    """
    names: dict = {}
    with redirect_stdout(io.StringIO()), matplotlib.rc_context():
        matplotlib.use("Agg")
        programs = [exercise.answered(answer) for answer in answers]
        for cell in needed(exercise.earlier, *filter(is_python, [exercise.answered(), *programs])):
            exec(cell, names)                                  # the course's own code
        return [outcome(program, dict(names)) for program in programs]


def is_python(program: str) -> bool:
    try:
        ast.parse(program)
    except SyntaxError:
        return False
    return True


def outcome(source: str, names: dict) -> str:
    try:
        exec(source, names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return PASSES


def needed(cells: Sequence[str], *programs: str) -> list[str]:
    """Of these cells in a row, those that the programs rest on: the one that starts the notebook,
    and the last that defines each name they use, with what it needs in turn. Of a cell that only
    imports what they use, its imports."""
    taken, imports = {i for i, cell in enumerate(cells) if "notebook.start(" in cell}, set()
    asked = [(len(cells), name) for program in programs for name in used(program)]
    asked += [(i, name) for i in taken for name in used(cells[i])]
    while asked:
        before, name = asked.pop()
        i = next((i for i in reversed(range(before)) if name in defined(cells[i])), None)
        if i is None or i in taken:
            continue
        alone, rest = parted(cells[i])
        if name in defined(alone) - defined(rest):
            imports.add(i)
        else:
            taken.add(i)
            asked += [(i, other) for other in used(cells[i])]
    return [cells[i] if i in taken else parted(cells[i])[0] for i in sorted(taken | imports)]


@cache
def parted(source: str) -> tuple[str, str]:
    """The import statements at a cell's top level, and its other statements."""
    parts = [], []
    for node in ast.parse(source).body:
        parts[not isinstance(node, ast.Import | ast.ImportFrom)].append(ast.unparse(node))
    return tuple(map("\n".join, parts))


@cache
def defined(source: str) -> set[str]:
    """Names that a cell gives a value, or an entry (`found[key] = ...`), at its top level or in a
    loop or a `with` there."""
    return {name for node in outside_functions(ast.parse(source))
            for name in names_given(node) | names_filled(node)}


def names_given(node: ast.AST) -> set[str]:
    """What this statement, and none inside of it, gives a value."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname if alias.asname is not None else alias.name.split(".")[0]
                for alias in node.names}
    targets = (node.targets if isinstance(node, ast.Assign) else
               [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For
                                           | ast.NamedExpr) else
               [item.optional_vars for item in node.items if item.optional_vars is not None]
               if isinstance(node, ast.With) else [])
    return {each.id for target in targets for each in ast.walk(target)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}


def names_filled(node: ast.AST) -> set[str]:
    """Of what this statement gives an entry or an attribute: models["novel"] = ..., a.b[0] += 1."""
    targets = (node.targets if isinstance(node, ast.Assign) else
               [node.target] if isinstance(node, ast.AugAssign) else [])
    places = [outermost(each) for target in targets for each in ast.walk(target)
              if isinstance(each, ast.Subscript | ast.Attribute)
              and isinstance(each.ctx, ast.Store)]
    return {place.id for place in places if isinstance(place, ast.Name)}


def outermost(node: ast.expr) -> ast.expr:
    """Of a.b[0], the name a."""
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node


def place_after(node: ast.AST) -> tuple[int, int]:
    """Where the names that a statement gives a value have it: after what it reads first."""
    if isinstance(node, ast.For):
        node = node.iter
    elif isinstance(node, ast.With):
        node = node.items[-1].context_expr
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.lineno, node.col_offset
    return node.end_lineno, node.end_col_offset


def outside_functions(node: ast.AST):
    """A node and all below it, but not the bodies of functions, classes and comprehensions."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.ListComp | ast.SetComp
                      | ast.DictComp | ast.GeneratorExp):
        for child in ast.iter_child_nodes(node):
            yield from outside_functions(child)


@cache
def used(source: str) -> set[str]:
    """Names that a cell reads before it has given them a value itself, as far as places tell."""
    tree, given = ast.parse(source), {}
    for node in outside_functions(tree):
        for name in names_given(node):
            given.setdefault(name, place_after(node))
    read = {node.id for node in names_read(tree)
            if given.get(node.id, (node.lineno + 1, 0)) > (node.lineno, node.col_offset)}
    changed = {node.target.id for node in outside_functions(tree)
               if isinstance(node, ast.AugAssign)
               and isinstance(node.target, ast.Name)
               and given[node.target.id] >= place_after(node)}
    cell = symtable.symtable(source, "cell", "exec")
    return ((read | changed) & names_of_the_notebook(cell)) - set(dir(builtins))


def names_read(node: ast.AST, own: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Where a tree reads a name, unless a function around it has the name for its own."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in own:
            yield node
        return
    inside = []
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        inside = node.body if isinstance(node.body, list) else [node.body]
        theirs = own | names_of_a_function(node.args, inside)
    for child in ast.iter_child_nodes(node):                # defaults are read outside
        yield from names_read(child, theirs if child in inside else own)


def names_of_a_function(arguments: ast.arguments, body: list[ast.AST]) -> set[str]:
    """Its arguments, and what its body gives a value."""
    nodes = [node for part in body for node in outside_functions(part)]
    shared = {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    return ({node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)}
            | set().union(*map(names_given, nodes))) - shared


def names_of_the_notebook(scope: symtable.SymbolTable) -> set[str]:
    """Names in a cell that are not a function's or a comprehension's own."""
    found = {symbol.get_name() for symbol in scope.get_symbols()
             if scope.get_type() == "module" or symbol.is_global()}
    return found.union(*map(names_of_the_notebook, scope.get_children()))
