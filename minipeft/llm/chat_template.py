"""A chat template: the program, in Jinja, that a model's folder brings to write a conversation.

    text = ChatTemplate(source).render(messages=messages, add_generation_prompt=True)

It is run as transformers runs it, in Jinja's sandbox: no imports, no attribute that begins with an
underscore, nothing changed of what it is given. Beyond that, its loops and calls are counted and
its texts measured, so that it ends; one filter or method can still build one large text.
"""
import json
from datetime import datetime
from itertools import islice

from ..files import short

try:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment as Sandbox
    from jinja2.utils import Namespace
except ImportError:             # said by ChatTemplate: who has no folder needs no Jinja
    jinja2, Extension, Sandbox, Namespace = None, object, object, object

STEPS = 200_000                 # rounds of loops and calls
LONGEST = 10_000_000            # characters of a text, entries of a list
POWER = 64                      # largest exponent


class Endless(ValueError):
    """A template that does more than STEPS, or makes a text of more than LONGEST."""


class Generation(Extension):
    """{% generation %}...{% endgeneration %} marks what the assistant says, and changes nothing."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Bounded(Sandbox):
    """Jinja's sandbox, in which a template takes at most STEPS."""

    intercepted_binops = frozenset({"+", "*", "**"})
    left = STEPS

    def step(self, n: int = 1) -> None:
        self.left -= n
        if self.left < 0:
            raise Endless(f"it takes more than {STEPS} rounds of loops and calls")

    def call(self, context, function, *args, **kwargs):
        self.step()
        return measured(super().call(context, function, *args, **kwargs))

    def call_binop(self, context, operator, left, right):
        if operator == "**" and (extent(right) > POWER or extent(left) > LONGEST):
            raise Endless(f"it raises to the power of {short(right)}")
        if operator == "*" and extent(left) * extent(right) > LONGEST:
            raise Endless(f"it multiplies by {short(right)}")
        return measured(super().call_binop(context, operator, left, right))

    def parsed(self, source: str) -> "nodes.Template":
        """The template with each loop's items counted, and each joined text measured."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        for text in list(tree.find_all(nodes.Concat)):
            inner = nodes.Concat(text.nodes, lineno=text.lineno)
            text.nodes = [nodes.Filter(inner, "measured", [], [], None, None, lineno=text.lineno)]
        return tree


class PlainNames(Namespace):
    """Jinja's namespace without names that begin with an underscore, as transformers has it."""

    def __init__(*args, **names):                  # namespace(self=...) is a template's right
        for name in dict(*args[1:], **names):
            check_plain(name)
        Namespace.__init__(*args, **names)

    def __setitem__(self, name, value):
        check_plain(name)
        super().__setitem__(name, value)


def check_plain(name) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace's name {name!r:.80} begins with an "
                                              f"underscore")


def extent(value) -> float:
    """The length of a text or list, or the size of a number, which would be that of a product."""
    return len(value) if isinstance(value, str | list | tuple) else (
        abs(value) if isinstance(value, int | float) else 1)


def measured(value):
    if isinstance(value, str | list | tuple) and len(value) > LONGEST:
        raise Endless(f"it makes a text or list of more than {LONGEST}")
    return value


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers': Jinja's own would escape < and >."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def environment() -> Bounded:
    found = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    @jinja2.pass_context                # so that Jinja does not count once, when it compiles
    def counted(context, items) -> list:
        items = list(islice(items, found.left + 1))
        found.step(len(items))
        return items

    found.filters |= {"tojson": to_json, "counted": counted, "measured": measured}
    found.globals |= {"raise_exception": raise_exception, "namespace": PlainNames,
                      "strftime_now": lambda text: datetime.now().strftime(text)}
    return found


class ChatTemplate:
    """ValueError, which names `where` it is from, for a template that is none, or that fails."""

    def __init__(self, source: str, where: str):
        if jinja2 is None:
            raise ImportError("a chat template needs the package jinja2; install it with: "
                              "pip install jinja2")
        self.where, self.environment = where, environment()
        try:
            self.template = self.environment.from_string(self.environment.parsed(source))
        except (jinja2.TemplateError, RuntimeError, SyntaxError, ValueError, MemoryError) as error:
            raise ValueError(f"{where} is no template that Jinja reads: {short(error, str)}; "
                             f"restore it") from None

    def render(self, **variables) -> str:
        self.environment.left, pieces, length = STEPS, [], 0
        try:
            for piece in self.template.generate(variables):
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise Endless(f"it writes more than {LONGEST} characters")
        except jinja2.exceptions.SecurityError as error:
            raise ValueError(f"{self.where} does what the sandbox forbids: "
                             f"{short(error, str)}") from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError,
                AttributeError, RuntimeError, MemoryError) as error:
            raise ValueError(f"{self.where} does not take this conversation: "
                             f"{short(error, str)}") from None
        return "".join(pieces)
