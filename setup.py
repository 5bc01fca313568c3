"""What pyproject.toml cannot say: a wheel carries what its commands read, as minipeft/data and
minipeft/results. A checkout has it once, at the top; minipeft/files.py knows which of the two is
there. (As packages with folders of their own, the two would make setuptools import an editable
minipeft by a hook that comes too late where a folder of that name lies beside the notebook.)
"""
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {"data": Path("data"), "results": Path("benchmarks", "results")}     # in the wheel, here
FILES = {"data": ("*.json", "*.safetensors", "tool_calls/train.jsonl", "tool_calls/test.jsonl",
                  "tool_calls/questions.jsonl"),
         "results": ("claims.json", "compare/compare.json", "languages/graded.jsonl",
                     "capacity/capacity.jsonl", "tool_calls/runs.jsonl",
                     "tool_calls/step_costs.json", "tool_calls/base.json",
                     "tool_calls/differences.json", "decode.json")}


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        for target, source in () if self.editable_mode else self.data():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def data(self) -> list[tuple[Path, Path]]:
        """(where in the wheel, where here) of every file."""
        return [(Path(self.build_lib, "minipeft", name, path.relative_to(folder)), path)
                for name, folder in FOLDERS.items() for pattern in FILES[name]
                for path in folder.glob(pattern)]

    def get_source_files(self) -> list[str]:
        """For a source distribution."""
        return super().get_source_files() + [str(source) for _, source in self.data()]


setup(cmdclass={"build_py": BuildWithData})
