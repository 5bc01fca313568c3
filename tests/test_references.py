"""Whatever the text points at is there: notebooks, sections, exercises, questions, commands, files,
names. (Claims and questions name headings; test_claims.py and test_quiz.py look those up.)"""
import json
import re
import shlex
from pathlib import Path

import pytest

from minipeft.__main__ import parser
from minipeft.course.claims.table import CLAIMS
from minipeft.course.questions import questions

ROOT = Path(__file__).parents[1]
PATHS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
CELLS = {number: [(cell["cell_type"], "".join(cell["source"]))
                  for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
         for number, path in PATHS.items()}
PAGES = [ROOT / name for name in (
    "README.md", "CONTRIBUTING.md", "notebooks/README.md", "notebooks/TEACHING.md",
    "data/README.md", "data/tool_calls/README.md", "docs/differences.md", "benchmarks/RESULTS.md",
    "benchmarks/parity.md", "data/questions.json")]
CODE = sorted(path for folder in ("minipeft", "benchmarks", "docs", "data")
              for path in (ROOT / folder).rglob("*.py"))
TYPED = [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]
ELSEWHERE = {       # names of other libraries that the text explains and no code here uses
    "loralib", "BitsAndBytesConfig", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    "enable_input_require_grads", "use_orig_params"}
# Files of bitsandbytes and of ggml; of a user's data folder
THEIRS = {"functional.py", "docs/gguf.md", "minipeft/quiz.json", "nbgrader_config.py"}
NUMBERS = r"(\d+(?:(?:, | and |, and | to )\d+)*)"        # "4", "01, 03 and 10", "03 to 09"
PAPER = r"(19|20)\d\d|et al|paper|authors"              # before "section": one of theirs, not ours


def texts() -> dict[str, str]:
    """Everything that a reader reads, by where it stands: notebooks (cell by cell, with a line
    between), pages, code."""
    notebooks = {number: "\n\n".join(text for _, text in cells) for number, cells in CELLS.items()}
    return notebooks | {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
                        for path in (*PAGES, *CODE)}


def counted(numbers: str, width: int = 0) -> list[str]:
    """ "03 to 05" is 03, 04, 05; "1, 2 and 4" is 1, 2, 4."""
    found = []
    for part in re.split(r",? and |, ", numbers):
        first, _, last = part.partition(" to ")
        found += range(int(first), int(last if last else first) + 1)
    return [f"{number:0{width}d}" for number in found]


def sections(number: str) -> set[str]:
    return set(re.findall(r"(?m)^## (\d+)\. ", "\n".join(
        text for kind, text in CELLS[number] if kind == "markdown")))


def exercises(number: str) -> set[str]:
    return set(re.findall(r"\*\*Exercise (\d+)\*\*", "\n".join(text for _, text in CELLS[number])))


def mentions(what: str, where: str, text: str):
    """(notebook, number, its sentence) for "section 4" and the like: of the notebook named just
    before, else of the one in which it stands."""
    for match in re.finditer(rf"(?<![\w*])(?:{what})s?(?=[ \n]\d)\s{NUMBERS}(?![\d:]|\.\d)", text):
        before = re.split(r"\n\n|[^\d.]\. ", text[:match.start()])[-1][-120:]
        named = re.search(r"[Nn]otebook (\d\d)(?:'s|,| [^.;()]{0,25})?\s*$", before)
        for number in counted(match[1]):
            yield named[1] if named else where, number, before + match[0]


@pytest.mark.parametrize("numbers, wanted", [
    ("4", ["04"]), ("03 and 10", ["03", "10"]), ("00, 01, and 03", ["00", "01", "03"]),
    ("03 to 05 and 07", ["03", "04", "05", "07"])])
def test_numbers_in_words_are_counted(numbers, wanted):
    assert counted(numbers, 2) == wanted


def test_a_notebook_that_is_mentioned_exists():
    found = {(where, number) for where, text in texts().items()
             for match in re.finditer(rf"[Nn]otebooks?\s{NUMBERS}", text)
             for number in counted(match[1], 2)}
    assert len(found) > 50
    assert not {(where, number) for where, number in found if number not in PATHS}


def test_a_notebook_is_called_by_its_whole_name():
    names = {path.stem for path in PATHS.values()}
    found = {(where, match[0]) for where, text in texts().items()
             for match in re.finditer(r"(?<![\w.-])\d\d_[a-z][a-z_]+\b", text)}
    assert len(found) > 30
    assert not {(where, name) for where, name in found if name not in names}


def test_a_section_that_is_mentioned_exists():
    ours = []
    for where in PATHS:
        for notebook, number, sentence in mentions("[Ss]ection", where, texts()[where]):
            if not re.search(PAPER, sentence):
                ours.append((where, notebook, number, sentence))
    assert len(ours) > 100
    assert not [mention for mention in ours if mention[2] not in sections(mention[1])]


def test_an_exercise_that_is_mentioned_exists():
    found = [(where, *mention) for where in PATHS
             for mention in mentions("[Ee]xercise", where, texts()[where])]
    assert len(found) > 20
    assert not [mention for mention in found if mention[2] not in exercises(mention[1])]


def test_a_question_that_is_mentioned_exists():
    interview = {str(question.number) for question in questions()}
    lost = []
    for where, cells in CELLS.items():
        asked = set()                  # before an experiment, of the notebooks that ask in numbers
        for _, text in cells:
            if "Before you run" in text:
                asked |= set(re.findall(r"(?m)^(?:> )?(\d)\. ", text))
            for _, number, sentence in mentions("question", where, text):
                if number not in (interview if where == "17" else asked):
                    lost.append((where, number, sentence))
    assert not lost


def test_a_claim_that_is_mentioned_exists():
    ids = {str(claim.id) for claim in CLAIMS}
    found = [(where, *mention) for where, text in texts().items()
             for mention in mentions("[Cc]laim", where, text)]
    assert not [mention for mention in found if mention[2] not in ids]


AFTER = r"  +| \(|,? (?=and |or |in the|with the |alone)|\.(?=\s|$)|…|\.\.\.|: "


def commands() -> list[tuple[str, str]]:
    """(where, what stands behind "python -m minipeft"), whole and without what a shell adds."""
    found = []
    for where, text in texts().items():
        text = re.sub(r'"\s*\n\s*f?"', "", text).replace("\\\n", " ")       # one line, one command
        for match in re.finditer(r"python -m minipeft ((?:[^\n`|;>&#\"]|\"[^\"\n]*\")+)", text):
            typed = re.split(AFTER, match[1])[0]
            found.append((where, typed.strip(" ,.:)*'")))
    return found


def test_a_command_that_is_mentioned_is_understood(capsys):
    lost = []
    found = [(where, typed) for where, typed in commands()
             if not re.search(r"[{}<]|[A-Z]{2}", typed)]
    assert len(found) > 40
    for where, typed in found:
        try:
            parser(shlex.split(typed)).parse_args(shlex.split(typed))
        except SystemExit as end:
            said = capsys.readouterr().err            # a text may name an option without its value
            if end.code and not re.search("are required|expected one argument", said):
                lost.append((where, typed, said[-200:]))
    assert not lost


def test_a_file_that_is_mentioned_exists():
    rooms = "minipeft|tests|benchmarks|notebooks|data|docs"
    found = {(where, name.rstrip("./")) for where, text in texts().items()
             for name in re.findall(rf"(?<![\w/.:-])(?:\.\./)?((?:{rooms})/[\w./-]+)", text)}
    found |= {(where, name) for where, text in texts().items()
              for name in re.findall(r"`(\w+\.(?:py|ipynb|md|toml|yml|txt|cfg))`", text)}
    found = {(where, name) for where, name in found if name not in THEIRS}
    assert len(found) > 150
    names = {path.name for folder in (*rooms.split("|"), ".ci")
             for path in (ROOT / folder).rglob("*")}
    names |= {path.name for path in ROOT.iterdir()}
    lost = [(where, name) for where, name in found
            if not ((ROOT / name).exists() if "/" in name else name in names)]
    assert not lost


def test_a_name_in_code_type_is_one_of_the_code():
    """`LoraConfig` and `x.requires_grad` in the text: each word stands in the package, its tests
    and benchmarks, or in a code cell of the same notebook."""
    words = set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in TYPED)))
    found, lost = 0, []
    for where, cells in CELLS.items():
        own = set(re.findall(r"\w+", " ".join(text for kind, text in cells if kind == "code")))
        for kind, text in cells:
            for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text):
                found += 1
                if kind == "markdown" and set(name.split(".")) - {""} - words - own - ELSEWHERE:
                    lost.append((where, name))
    assert found > 300
    assert not lost
