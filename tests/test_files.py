"""Files are written whole or not at all, and read with errors that name them."""
import json
import os
import stat
import struct

import pytest
import torch
from safetensors.torch import load_file

from minipeft import files
from minipeft.files import (check_keys, read_json, read_tensors, replacing, save_tensors,
                            write_json)


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half of the new")
        raise KeyboardInterrupt
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_umask_says(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.safetensors") as part:
            save_tensors(part, {"x": torch.ones(2)}, {"format": "pt"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.ones(2))


def test_a_disk_that_does_not_take_the_tensors_is_an_oserror_that_names_the_file(tmp_path,
                                                                               monkeypatch):
    def full(*args):
        raise files.SafetensorError("No space left on device")
    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"a.safetensors.* could not be written: No space left"):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})


NOT_JSON = {
    "half an object": (b"{", dict, "a.json is not valid JSON: .* at column 2; restore it"),
    "a comma too many": (b'{"a": 1,\n\n}', dict, "not valid JSON: .*, column"),
    "nothing": (b" \n", dict, "is not valid JSON: it is empty"),
    "a list": (b"[1]", dict, "a.json must hold an object, got list"),
    "an object": (b"{}", list, "a.json must hold a list, got dict"),
    "a number": (b"5", dict, "must hold an object, got int"),
    "null": (b"null", dict, "must hold an object, got NoneType"),
    "a list for an entry": (b"[[]]", list, "a.json, entry 1 must be an object, got \\[\\]"),
    "Latin-1": ('{"a":\n"\xe9"}'.encode("latin-1"), dict, "UTF-8, got the byte 0xe9 in line 2"),
    "UTF-16": ('{"r": 1}'.encode("utf-16"), dict, "looks like UTF-16; save it as UTF-8"),
    "UTF-16 without its mark": ('{"r": 1}'.encode("utf-16-le"), dict, "looks like UTF-16"),
    "UTF-32": ('{"r": 1}'.encode("utf-32-be"), dict, "looks like UTF-16"),
    "a key twice": (b'{"r": 1, "b": {"k": 1, "k": 2}}', dict, "the key k stands twice"),
    "NaN": (b'{"r": NaN}', dict, "the number NaN is not finite"),
    "infinity": (b'[-Infinity]', list, "the number -Infinity is not finite"),
    "1e400": (b'{"r": 1e400}', dict, "the number 1e400 is not finite"),
    "2^63": (b'{"r": 9223372036854775808}', dict, "9223372036854775808 is larger than 92233"),
    "a million digits": (b'{"r": -1' + b"0" * 10**6 + b"}", dict, "number -1000.*000... is larger"),
    "half a pair": (b'{"r": "\\uD83d"}', dict, "surrogates not allowed"),
    "65 lists": (b"[" * 65 + b"]" * 65, list, "not valid JSON: nested deeper than 64"),
    "100,000 lists": (b"[" * 100_000, list, "not valid JSON: nested deeper than 64"),
    "100,000 objects": (b'{"a":' * 100_000, dict, "not valid JSON: nested deeper than 64"),
    "a key missing": (b'{"a": 1}', dict, "a.json lacks r; it has a; restore it"),
    "all keys missing": (b"{}", dict, "a.json lacks r; it has nothing; restore it"),
    "a text for a number": (b'{"r": "4"}', dict, "r must be a whole number or null, got '4'; res"),
    "true for a number": (b'{"r": true}', dict, "r must be a whole number or null, got True"),
    "4.0 for a whole one": (b'{"r": 4.0}', dict, "r must be a whole number or null, got 4.0"),
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_no_json_or_another_kind_is_refused_by_name(case, tmp_path):
    content, wanted, message = NOT_JSON[case]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "a.json", wanted=wanted, keys={"r": (int, type(None))})
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_json_is_read_as_it_stands(tmp_path):
    pair = {"r": None, "\U0001f600": [2**63 - 1, -2**63 + 1, 1e308, -0.0, True], "": "\u2028"}
    for encoding in ("utf-8", "utf-8-sig"):                  # Windows' editors write the mark
        (tmp_path / "a.json").write_text(json.dumps(pair, ensure_ascii=False), encoding=encoding)
        assert read_json(tmp_path / "a.json", keys={"r": (int, type(None))}) == pair
    (tmp_path / "a.json").write_text(json.dumps(pair))       # the emoji as two halves, \\ud83d...
    assert read_json(tmp_path / "a.json") == pair
    (tmp_path / "a.json").write_bytes(b"[" * 64 + b"1" + b"]" * 64)
    assert read_json(tmp_path / "a.json", wanted=list)


def test_keys_of_keys_and_keys_that_nobody_knows():
    keys = {"recipe": {"lr": (int, float)}}
    check_keys({"recipe": {"lr": 1}, "more": 2}, keys, "run.json", "restore it")
    for entries, message in [({"recipe": 3}, "run.json: recipe must be an object, got 3"),
                             ({"recipe": {}}, "run.json: recipe lacks lr; it has nothing"),
                             ({"recipe": {"lr": None}}, "recipe: lr must be a whole number or a")]:
        with pytest.raises(ValueError, match=message):
            check_keys(entries, keys, "run.json", "restore it")
    with pytest.raises(ValueError, match="run.json has the unknown key extra; restore it"):
        check_keys({"recipe": {"lr": 1}, "extra": 2}, keys, "run.json", "restore it", others=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_does_not_have_leaves_the_file_as_it_was(number, tmp_path):
    write_json(tmp_path / "a.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="a.json is not written: a number in it is NaN or"):
        write_json(tmp_path / "a.json", {"loss": [number]})
    assert read_json(tmp_path / "a.json") == {"loss": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def header(entries) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NOT_TENSORS = {
    "nothing": b"", "seven bytes": b"\0" * 7, "JSON": b'{"x": 1}', "a header of 2^60 bytes":
    struct.pack("<Q", 2**60) + b"{}", "no numbers": header({"x": ONE}), "half of them":
    header({"x": ONE}) + b"\0" * 7, "too many": header({"x": ONE}) + b"\0" * 9,
    "a wide shape": header({"x": ONE | {"shape": [2**62, 4]}}) + b"\0" * 8,
    "another shape": header({"x": ONE | {"shape": [3]}}) + b"\0" * 8,
    "offsets backwards": header({"x": ONE | {"data_offsets": [8, 0]}}) + b"\0" * 8,
    "an unknown dtype": header({"x": ONE | {"dtype": "F33"}}) + b"\0" * 8,
    "a hole": header({"x": ONE | {"data_offsets": [8, 16]}}) + b"\0" * 16,
    "two in one place": header({"x": ONE, "y": ONE}) + b"\0" * 8,
    "a list": header([ONE]) + b"\0" * 8, "a deep header": header({}) [:8] + b"[" * 5000,
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}


@pytest.mark.parametrize("case", NOT_TENSORS)
def test_what_is_no_safetensors_file_is_refused_by_name(case, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(NOT_TENSORS[case])
    with pytest.raises(ValueError, match=r"a.safetensors is damaged: truncated.*; delete it"):
        read_tensors(tmp_path / "a.safetensors", "delete it")


def test_tensors_and_their_notes_come_back(tmp_path):
    tensors = {"x": torch.randn(2, 3), "empty": torch.ones(0, 4), "n": torch.tensor(5)}
    save_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt", "history": "{}"})
    found, notes = read_tensors(tmp_path / "a.safetensors")
    assert notes == {"format": "pt", "history": "{}"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("read", [read_json, read_tensors])
def test_a_folder_or_nothing_in_place_of_a_file_is_an_oserror_that_names_it(read, tmp_path):
    (tmp_path / "a.folder").mkdir()
    for name in ("a.folder", "b.none"):
        with pytest.raises(OSError, match=name):
            read(tmp_path / name)


def test_the_length_without_limit_of_transformers_is_a_number_and_no_whole_one(tmp_path):
    """tokenizer_config.json of most models has it: transformers' VERY_LARGE_INTEGER, int(1e30)."""
    path = tmp_path / "a.json"
    path.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert files.read_json(path) == {"model_max_length": 1e30}
    with pytest.raises(ValueError, match="model_max_length must be a whole number, got 1e\\+30"):
        files.read_json(path, keys={"model_max_length": int})
