"""A study's runs in the process of the test, where it can put another function in their place."""
from types import SimpleNamespace

from minipeft.lab.study import Runs


class RunsHere(Runs):
    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.processes = SimpleNamespace(apply=lambda call, given: call(*given),
                                         terminate=lambda: None)
        return self
