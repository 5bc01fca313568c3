# Hidden tests, which only `python -m minipeft course grade` and nbgrader run: other arguments than
# the notebook's check has, so that an answer that lists the check's results is refused. Each stands
# behind the line "# %% NN.N" and sees the names of the notebook, the answer's among them.

# %% 00.1
assert largest("mixed precision") == largest("float32"), "both recipes take 16 bytes a parameter"
RECIPES["hidden"] = {"weights": 3, "moments": 4}
assert largest("hidden") == 3681, "add up the bytes of the recipe that is asked for"

# %% 00.2
assert qv_count(3, 10, 4, 2) == 204, "any number of layers, any widths, any rank"
