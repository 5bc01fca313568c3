# Hidden tests. Students do not get this file: `python -m minipeft course grade` and nbgrader run it
# after an exercise's own check. They are for the exercises whose check can be passed by a list of
# its results, so each asks for other arguments. A test stands behind the line "# %% NN.N" and sees
# the names of that notebook, the answer's among them.

# %% 00.2
big = GPTConfig.preset("llama-33b")
assert static_bytes("llama-33b", "full") == 16 * count_by_hand(big), "any model"
assert static_bytes("llama-33b", "LoRA") == (2 * count_by_hand(big) + 16 * lora_count(big, 16, "all")
                                             ), "any model"

# %% 01.1
assert abs(line(12) - 4 * 36 / 48 * math.log(36) / 6) < 1e-9, "any number of known words"

# %% 06.2
assert plan_card(300, r=32)["llama-7b"] - frozen("llama-7b").bytes == 32 * n7, "any rank"

# %% 07.1
assert cost(GPTConfig.preset("llama-3-8b"), 3) == (12_288, 393_216), "any model, any length"

# %% 07.2
assert abs(floor(36) - math.log(12) / 6) < 1e-9, "any number of known words"

# %% 08.1
assert prefix_numbers(GPTConfig.preset("llama-3-8b"), 3) == 196_608, "any model, any length"

# %% 08.4
assert longest_text(100, 7, 1) == 93 and longest_text(50, 0, 11) == 40, "any window, any prefix"

# %% 09.1
assert largest_m(16, 2, 10_000, 0.1) == 7, "any model, any share"

# %% 11.1
codes = list(range(-16, 16))
assert decode_q8_0(struct.pack("<e32b", 0.5, *codes)) == [code / 2 for code in codes], "any block"
