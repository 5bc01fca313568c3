"""The deck for Anki: opened with sqlite, exported again, imported by Anki's rule."""
import dataclasses
import json
import os
import re
import sqlite3
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("genanki", reason="genanki is in the optional extra minipeft[course]")
from minipeft.__main__ import main
from minipeft.course import cards
from minipeft.course.questions import MARKS, questions

NOW = 1_800_000_000.0       # some second of 2027


def opened(path: Path) -> dict[str, tuple]:
    """guid: (fields, tags, when changed, layout) of every note."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.read("media") == b"{}"
        database = sqlite3.connect(":memory:")
        database.deserialize(archive.read("collection.anki2"))
    notes = database.execute("select guid, flds, tags, mod, mid from notes").fetchall()
    asked = database.execute("select count(distinct nid), count(*) from cards").fetchone()
    assert asked == (len(notes), len(notes))                    # a card of each
    layouts, decks = map(json.loads, database.execute("select models, decks from col").fetchone())
    assert {str(mid) for *_, mid in notes} <= layouts.keys()
    assert {str(did) for (did,) in database.execute("select did from cards")} <= decks.keys()
    found = {guid: (fields.split("\x1f"), tags.split(), mod, mid)
             for guid, fields, tags, mod, mid in notes}
    assert len(found) == len(notes)
    return found


def imported(collection: dict, deck: dict) -> list[str]:
    """What Anki does with each note of a deck, done to a collection: a new guid is added; a known
    one of the same layout takes the new fields if it is newer (its manual, "Packaged Decks",
    "Updating")."""
    done = []
    for guid, note in deck.items():
        old = collection.get(guid)
        if old is None or (old[3] == note[3] and old[2] < note[2]):
            collection[guid] = note
        done.append("new" if old is None else "updated" if collection[guid] is note else "kept")
    return done


@pytest.fixture
def exported(tmp_path):
    """exported(questions, now): a deck, opened."""
    def run(chosen=None, now=NOW):
        path = tmp_path / "interview.apkg"
        cards.write(questions() if chosen is None else chosen, path, now)
        return opened(path)
    return run


def test_a_note_of_each_question_holds_its_answer_its_mark_and_where_the_proof_is(exported):
    notes = {tuple(fields[:1]): (fields, tags) for fields, tags, *_ in exported().values()}
    assert len(notes) == len(questions())
    fields, tags = notes["Does LoRA add inference latency?",]
    assert fields[1:2] + fields[3:] == [
        "The three that every course asks", f"proved: {MARKS['proved']}",
        "the cell of question 1 in notebook 17; <code>minipeft claims</code> also checks "
        '"LoRA has zero inference latency when merged"', "04_lora_in_practice: Latency"]
    assert fields[2].startswith(r"Merged, no: \(W_0 + \frac{\alpha}{r} B A\) is one matrix")
    assert tags == ["minipeft::notebook::04_lora_in_practice", "minipeft::level::1_phone_screen"]
    assert len({tag for _, tags in notes.values() for tag in tags}) == 12 + 3   # counted by hand


@pytest.mark.parametrize("question", questions(), ids=lambda q: q.id)
def test_every_formula_is_set_by_mathjax_and_the_rest_is_html(question):
    for text in (question.question, question.answer):
        field = cards.set_in_html(text)
        formulas = re.findall(r"\\\((.*?)\\\)", field)
        assert formulas == [f.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                            for f in text.split("$")[1::2]]
        for formula in formulas:
            assert formula.count("{") == formula.count("}") and "\\(" not in formula
            assert formula.count(r"\lVert") == formula.count(r"\rVert")
        assert not set(field) & set("$`")
        assert set(re.findall(r"<[^>]*>", field)) <= {"<code>", "</code>"}
        assert field.count("<code>") == field.count("</code>") == text.count("`") / 2


def test_what_html_means_otherwise_is_escaped():
    assert cards.set_in_html("|B| > 0 & `a<b`, $r < C$ \"so\"") == (
        r'|B| &gt; 0 &amp; <code>a&lt;b</code>, \(r &lt; C\) "so"')


def test_the_same_clock_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        cards.write(questions(), tmp_path / f"{name}.apkg", NOW)
    assert (tmp_path / "a.apkg").read_bytes() == (tmp_path / "b.apkg").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.apkg", "b.apkg"}


def test_a_later_deck_updates_and_never_doubles(exported):
    first = questions()[:25]
    collection = {}
    assert imported(collection, exported(first)) == ["new"] * 25
    assert imported(collection, exported(first)) == ["kept"] * 25
    changed = [dataclasses.replace(q, number=q.number + 1, question="Latency?", answer="None.")
               if q.id == "latency" else q for q in questions()]
    before = dict(collection)
    assert imported(collection, exported(changed, NOW + 1)) == ["updated"] * 25 + ["new"] * 69
    assert len(collection) == len(questions())
    (guid,) = [guid for guid, note in before.items() if note[0] != collection[guid][0]]
    assert collection[guid][0][:3] == ["Latency?", "The three that every course asks", "None."]
    assert "question 2 in notebook 17" in collection[guid][0][4]
    assert before[guid][0][0] == "Does LoRA add inference latency?"


def test_the_ids_are_those_of_the_first_deck_that_was_ever_given_away(exported):
    """Another id would double everybody's notes."""
    notes = exported()
    (guid,) = [guid for guid, (fields, *_) in notes.items() if "inference latency?" in fields[0]]
    assert guid == "M=44a^}gt8" and {note[3] for note in notes.values()} == {1_340_925_687}


# ---------------------------------------------------------------- the command


def test_the_command_writes_a_selection_and_says_what_it_is_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["quiz", "--cards", "research.apkg", "--level", "3"]) == 0
    assert capsys.readouterr().out == ("written: research.apkg, 26 cards; in Anki: File, Import. "
                                       "A later deck updates these cards.\n")
    assert len(opened(tmp_path / "research.apkg")) == 26
    assert main(["quiz", "--cards", "research.apkg"]) == 0             # its own: written over
    assert len(opened(tmp_path / "research.apkg")) == 94


def of_anki(path: Path) -> None:
    """An archive as Anki exports it, with somebody's dates."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("collection.anki2", "not ours")


def later_zip(path: Path) -> None:
    """Of a version of the format that Python does not read."""
    of_anki(path)
    content = path.read_bytes()
    at = content.index(b"PK\1\2") + 6                     # of the first entry: version needed
    path.write_bytes(content[:at] + b"\x5a\0" + content[at + 2:])


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("my notes"), lambda path: path.write_bytes(b""), of_anki,
    later_zip, lambda path: path.mkdir()],
    ids=["text", "empty", "a deck of somebody's", "zip 9.0", "folder"])
def test_no_file_but_its_own_is_written_over(make, tmp_path, capsys):
    path = tmp_path / "deck.apkg"
    make(path)
    before = path.is_dir() or path.read_bytes()
    assert main(["quiz", "--cards", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"minipeft quiz: {path} is there and is no deck of `minipeft quiz --cards`; move it away, "
        f"or name another file\n")
    assert before == (path.is_dir() or path.read_bytes())
    assert [path.name for path in tmp_path.iterdir()] == ["deck.apkg"]


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path, capsys):
    path = tmp_path / "nowhere" / "deck.apkg"
    assert main(["quiz", "--cards", str(path)]) == 1
    assert capsys.readouterr().err == (f"minipeft quiz: {path} cannot be written "
                                       f"({os.strerror(2)}); name another file with --cards\n")


def test_a_deck_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "deck.apkg"
    cards.write(questions(), path, NOW)
    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cards.write(questions(), path, NOW + 1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["deck.apkg"]


def test_another_ending_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quiz", "--cards", "deck.txt"])
    assert stop.value.code == 2
    assert "--cards must name a file that ends with .apkg, got deck.txt" in capsys.readouterr().err


def test_without_genanki_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "genanki", None)
    monkeypatch.delitem(sys.modules, "minipeft.course.cards")
    monkeypatch.delattr("minipeft.course.cards")
    assert main(["quiz", "--cards", str(tmp_path / "deck.apkg")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'minipeft[course]', or: pip install genanki" in err
    assert not list(tmp_path.iterdir())
