"""Can what requirements.txt pins be installed on machines that are not ours? python .ci/resolve.py

Asks the public package index, by `uv pip compile` (pip install uv), for every platform and Python:
is there a set of wheels that fits the pins and each other? It reads metadata only and installs
nothing. Builds that lie on this machine are switched off: one of them once hid that two pins
contradicted each other. Ends with 0 if every row resolves, 1 if one does not, 2 if it did not run.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {"Linux x86-64": "x86_64-unknown-linux-gnu",
             "Linux ARM64": "aarch64-unknown-linux-gnu",
             "Windows x86-64": "x86_64-pc-windows-msvc",
             "macOS 14 Apple silicon": "aarch64-apple-darwin"}
FILES = (("requirements.txt",), ("requirements-smollm2.txt", "--no-deps"))      # as make installs
# Of uv's settings only what reaches the index; the others can add builds or leave some out.
KEPT = {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_KEYRING_PROVIDER", "UV_HTTP_TIMEOUT",
        "UV_HTTP_RETRIES", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS"}
CANNOT_READ = re.compile(r"returned a 40[13]|could not be queried|network (was|is) disabled")


class NotChecked(Exception):
    """Nothing can be said about the pins; the text says why."""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("UV_") or name in KEPT}
    # the oldest macOS that torch's wheels run on; uv would take an older one
    return {**kept, "MACOSX_DEPLOYMENT_TARGET": "14.0"}


def reason(error: str) -> str:
    """The first line that says why: uv's "Because ..." where it has found a contradiction."""
    because = re.search(r"Because .*", error)
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return because.group() if because else (lines or ["uv said nothing"])[0]


def resolve(uv: str, platform: str, python: str, cache: str) -> str:
    """ "ok", or why the pins do not resolve there."""
    for file, *options in FILES:
        command = [uv, "pip", "compile", "--no-config", "--cache-dir", cache, "--quiet",
                   "--only-binary", ":all:", "--no-header", "--no-annotate",
                   "--python", sys.executable, "--no-python-downloads",
                   "--python-platform", platform, "--python-version", python, *options, file]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True,
                              text=True, encoding="utf-8", errors="replace")
        if done.returncode and ("No solution found" not in done.stderr
                                or CANNOT_READ.search(done.stderr)):
            raise NotChecked(f"uv could not read the index: {reason(done.stderr)}")
        if done.returncode:
            return f"{file}: {reason(done.stderr)}"
        found = done.stdout.split()
        if not any("==" in name for name in found):
            raise NotChecked(f"uv named no package for {file}")
        if local := [name for name in found if "+" in name.partition("==")[2]]:
            raise NotChecked(f"the index gives builds that are not public ({', '.join(local)}); "
                             "set UV_DEFAULT_INDEX to one that has public builds only")
    return "ok"


def main() -> int:
    uv = shutil.which("uv")
    if uv is None:
        print("NOT CHECKED: this needs uv on the PATH, and there is none; pip install uv")
        return 2
    bad = 0
    print(f"{'platform':24}{'Python':8}pins")
    with tempfile.TemporaryDirectory() as cache:            # nothing is taken from an earlier run
        for name, platform in PLATFORMS.items():
            for python in PYTHONS:
                try:
                    answer = resolve(uv, platform, python, cache)
                except NotChecked as error:
                    print(f"{name:24}{python:8}not checked", f"NOT CHECKED: {error}", sep="\n")
                    return 2
                bad += answer != "ok"
                print(f"{name:24}{python:8}{answer}", flush=True)
    total = len(PLATFORMS) * len(PYTHONS)
    print(f"{total - bad} of {total} resolve, from public wheels alone")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
