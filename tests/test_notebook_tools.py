"""check must fail when it should: the notebooks' proofs rest on it."""
import pytest
import torch

pytest.importorskip("IPython")
from minipeft.course import notebook


def test_check_prints_one_line_for_equal_tensors(capsys):
    notebook.check("B A", torch.ones(2, 3), torch.ones(2, 3))
    notebook.check("a number", 0.5, 0.5 + 1e-9, atol=1e-6)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["B", "A", "(2,", "3)", "equal,", "bitwise"]
    assert second.endswith("equal within 1e-06")


@pytest.mark.parametrize("ours, theirs, atol, message", [
    (torch.ones(2), torch.ones(2) + 1e-6, 0.0, "largest difference is 9.5"),
    (torch.ones(2), torch.tensor([1.0, 1.2]), 0.1, "largest difference is 0.2, above 0.1"),
    (torch.ones(2), torch.ones(1, 2), 1.0, r"shapes are \(2,\) and \(1, 2\)"),
    (torch.tensor([float("nan")]), torch.tensor([1.0]), 1e9, "largest difference is inf"),
])
def test_check_fails_on_differences_shapes_and_nan(ours, theirs, atol, message):
    with pytest.raises(AssertionError, match=message):
        notebook.check("x", ours, theirs, atol)
