"""Files are written whole or not at all, and read with errors that name them."""
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from minipeft import files
from minipeft.files import read_json, replacing, save_tensors, write_json


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


@pytest.mark.parametrize("text, wanted, message", [
    ("{", dict, "a.json is not valid JSON.*; restore it"),
    ("[1]", dict, "a.json must hold an object, got list"),
    ("{}", list, "a.json must hold a list, got dict"),
    ("\xff", dict, "a.json is not valid JSON")])
def test_what_is_no_json_or_another_kind_is_refused_by_name(text, wanted, message, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "a.json", wanted=wanted)
