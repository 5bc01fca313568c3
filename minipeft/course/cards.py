"""Flash cards: the interview's questions as a deck of Anki, the program that many learn with.

    write(questions(), Path("interview.apkg"), now=time.time())

Deck, layout and notes have ids that stay. So who imports a later deck over an earlier one gets
every changed answer and keeps his own dates: Anki takes a note's new fields if the note has the
same id and layout and is newer (its manual, "Packaged Decks", "Updating").
"""
import contextlib
import html
import itertools
import re
import sqlite3
import zipfile
from pathlib import Path

from ..files import replacing
from .questions import LEVELS, MARKS, Question, evidence

try:
    import genanki
except ImportError as error:
    raise ImportError("flash cards are made by genanki; install it with: "
                      "pip install 'minipeft[course]', or: pip install genanki") from error

OURS = b"minipeft quiz --cards"         # the comment of the zip archive that a deck is
# Drawn once. Anki leaves a note as it is whose layout has got other fields or another template:
# who renames one of them gives the layout and the notes (see `note`) other ids.
DECK, LAYOUT = 1_784_602_913, 1_340_925_687
FIELDS = ("Question", "Group", "Answer", "Rests on", "Proof", "Reread")
FRONT = '<div class="small">{{Group}}</div><div>{{Question}}</div>'
BACK = """{{FrontSide}}<hr id="answer"><div>{{Answer}}</div>
<div class="small"><p>{{Rests on}}</p><p>Proof: {{Proof}}</p><p>Reread: {{Reread}}</p></div>"""
STYLE = """.card { font-family: sans-serif; font-size: 20px; max-width: 40em; margin: auto; }
.small { font-size: 14px; opacity: 0.75; margin: 0.5em 0; }"""


def write(chosen: list[Question], path: Path, now: float) -> None:
    """The questions as notes made at `now`, in seconds since 1970: the later of two decks wins.

    FileExistsError if another file than a deck of ours is there.
    """
    if path.exists() and not is_ours(path):
        raise FileExistsError(f"{path} is there and is no deck of `minipeft quiz --cards`; move it "
                              f"away, or name another file")
    layout = genanki.Model(LAYOUT, "minipeft interview", [{"name": name} for name in FIELDS],
                           [{"name": "Card", "qfmt": FRONT, "afmt": BACK}], css=STYLE)
    deck = genanki.Deck(DECK, "minipeft interview")
    for question in chosen:
        deck.add_note(note(question, layout))
    content = collection(deck, now)
    try:
        with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
            archive.comment = OURS
            for name, entry in (("collection.anki2", content), ("media", b"{}")):
                archive.writestr(zipfile.ZipInfo(name), entry, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}); name another file with "
                      f"--cards") from None


def collection(deck: genanki.Deck, now: float) -> bytes:
    """The SQLite database. genanki's own write_to_file leaves one in the folder for temporary
    files, and another time of day in each archive."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        milliseconds = itertools.count(int(1000 * now))         # the ids of rows
        genanki.Package(deck).write_to_db(database.cursor(), now, milliseconds)
        database.commit()
        return database.serialize()


def is_ours(path: Path) -> bool:
    if path.is_dir():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == OURS
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):     # of damaged ones too
        return False


def note(question: Question, layout: genanki.Model) -> genanki.Note:
    fields = (question.question, question.group, question.answer,
              f"{question.mark}: {MARKS[question.mark]}", evidence(question), question.reread)
    notebook, level = question.reread.partition(":")[0], question.level.replace(" ", "_")
    tags = [f"minipeft::notebook::{notebook}",
            f"minipeft::level::{1 + LEVELS.index(question.level)}_{level}"]
    return genanki.Note(layout, [set_in_html(text) for text in fields], tags=tags,
                        guid=genanki.guid_for("minipeft", question.id))


def set_in_html(text: str) -> str:
    r"""For Anki: "$r < C$" becomes "\(r &lt; C\)", which its MathJax sets, and `r` a <code>."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\$([^$]+)\$", lambda formula: rf"\({formula[1]}\)", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
