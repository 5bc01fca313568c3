"""check must fail when it should: the notebooks' proofs rest on it."""
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("IPython")
from minipeft.course import notebook


def test_check_prints_one_line_for_equal_tensors(capsys):
    notebook.check("B A", torch.ones(2, 3), torch.ones(2, 3))
    notebook.check("a number", 0.5, 0.5 + 1e-9, atol=1e-6)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["B", "A", "(2,", "3)", "equal,", "bitwise"]
    assert second.split() == ["a", "number", "~0.5", "equal", "within", "1e-06"]


def test_measured_prints_the_value_and_refuses_one_out_of_bounds(capsys):
    notebook.measured("loss of the stories", 0.7349, 0.5, 0.9, "nats per token")
    notebook.measured("numbers trained", 81920, 81920, 81920)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["loss", "of", "the", "stories", "~0.735", "nats", "per", "token"],
        ["numbers", "trained", "81,920"]]
    for value in (0.91, 0.49, float("nan")):
        with pytest.raises(AssertionError, match="not between 0.5 and 0.9"):
            notebook.measured("loss", value, 0.5, 0.9)


@pytest.mark.parametrize("stored, printed, equal", [
    ("loss   ~0.735 nats", "loss   ~0.72 nats", True),
    ("r = 8     ~9.8 %      ~100 %", "r = 8    ~10.1 %       ~99 %", True),
    ("(~0.1, ~0.22)", "(~0.11, ~0.2)", True),
    ("~1.2e-07; 5", "~1.31e-07; 6", False),
    ("loss   0.735 nats", "loss   0.72 nats", False),
    ("nearly ~all of it", "nearly ~none of it", False),
    ("loss   ~0.735 nats", "loss   ~0.735 bits", False),
])
def test_nbval_compares_all_but_approximate_values(request, stored, printed, equal):
    plugin = pytest.importorskip("nbval.plugin")
    file = Path(request.config.option.nbval_sanitize_with)
    patterns = plugin.get_sanitize_patterns(file.read_text(encoding="utf-8"))
    assert len(patterns) == 1                              # as many as the file means to have

    def masked(text: str) -> str:
        return re.sub(*patterns[0], text)
    assert (masked(stored) == masked(printed)) == equal


@pytest.mark.parametrize("ours, theirs, atol, message", [
    (torch.ones(2), torch.ones(2) + 1e-6, 0.0, "largest difference is 9.5"),
    (torch.ones(2), torch.tensor([1.0, 1.2]), 0.1, "largest difference is 0.2, above 0.1"),
    (torch.ones(2), torch.ones(1, 2), 1.0, r"shapes are \(2,\) and \(1, 2\)"),
    (torch.tensor([float("nan")]), torch.tensor([1.0]), 1e9, "largest difference is inf"),
])
def test_check_fails_on_differences_shapes_and_nan(ours, theirs, atol, message):
    with pytest.raises(AssertionError, match=message):
        notebook.check("x", ours, theirs, atol)


def test_a_check_raises_under_python_o_too():
    """Both kinds of disagreement; `assert` would be left out of what -O compiles."""
    source = Path(notebook.__file__).read_text(encoding="utf-8")
    names = {"__name__": notebook.__name__, "__package__": notebook.__package__}
    exec(compile(source, notebook.__file__, "exec", optimize=1), names)
    for theirs, message in ((torch.ones(2), "largest difference is 1, above 0.5"),
                            (torch.zeros(3), r"shapes are \(2,\) and \(3,\)"),
                            (torch.full((2,), float("nan")), "difference is inf, above 0.5")):
        with pytest.raises(AssertionError, match=message):
            names["check"]("x", torch.zeros(2), theirs, 0.5)
    with pytest.raises(AssertionError, match="not between 0.5 and 0.9"):
        names["measured"]("loss", 0.91, 0.5, 0.9)
