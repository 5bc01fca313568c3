# Hidden tests. Students do not get this file: `python -m minipeft course grade` and nbgrader run it
# after an exercise's own check. They are for the exercises whose check can be passed by a list of
# its results, so each asks for other arguments, and says in a sentence what it asks for. A test
# stands behind the line "# %% NN.N" and sees the names of that notebook, the answer's among them.

# %% 00.2
big = GPTConfig.preset("llama-33b")
frozen, adapter = 2 * count_by_hand(big), 16 * lora_count(big, 16, "all")
assert static_bytes("llama-33b", "full") == 8 * frozen, "it must be right for any model"
assert static_bytes("llama-33b", "LoRA") == frozen + adapter, "it must be right for any model"

# %% 01.1
wanted = 4 * 36 / 48 * math.log(36) / 6
assert abs(line(12) - wanted) < 1e-9, "it must be right for any number of known words"

# %% 06.2
found = plan_card(300, r=32)["llama-7b"] - frozen("llama-7b").bytes
assert found == 32 * n7, "it must be right for any rank"

# %% 07.1
found = longest_prompt(GPTConfig.preset("llama-3-8b"), 10, 1, False)
assert found == 819, "it must be right for any model and any number"

# %% 08.1
found = longest_prefix(GPTConfig.preset("llama-2-13b"), 4, 1)
assert found == 8, "it must be right for any model and any rank"

# %% 10.1
for case in (("languages", "qlora", "houlsby"), ("languages", "houlsby", "full")):
    at = distances(*case)
    best = max(at, key=lambda lr: at[lr][0])
    assert rigged(*case) == best, "it must be right for any two methods"

# %% 10.2
found = paired([0.2, 0.6], [0.1, 0.1])
assert all(map(math.isclose, found, (30, 20))), "it must be right for any two lists"

# %% 10.3
name, total = first_that_fits(llama3, 1024, 1000)
wanted = sum(planned(Run(llama3, seq=1024, r=16, method="lora")).values()) / 2**30
assert name == "LoRA" and abs(total - wanted) < 0.01, "it must be right for any length"

# %% 10.4
found = smallest_rank(3 * 40 * one, "llama-2-7b", 3)
assert found == 40, "it must be right for any number of bits and any density"
