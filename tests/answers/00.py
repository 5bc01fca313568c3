"""Wrong and right answers to the exercises of 00_the_bottleneck."""
_LINEARS = """c = GPTConfig.preset(name)
C, kv, total = c.hidden_size, c.head_dim * c.kv_heads, count_by_hand(c)
linears = c.num_hidden_layers * (2 * C * C + 2 * C * kv + 3 * C * c.intermediate_size)
n = lora_count(c, 16, "all")
"""
ANSWERS = [
    (1, "no bias correction", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * m / (v.sqrt() + eps), m, v""", "refused: m and v want dividing by 1 - b**t"),
    (1, "1 - b without the power t", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * (m / (1 - b1)) / ((v / (1 - b2)).sqrt() + eps), m, v""",
     "refused: right at t = 1, not at t = 2"),
    (1, "eps under the root", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * (m / (1 - b1**t)) / (v / (1 - b2**t) + eps).sqrt(), m, v""",
     "refused: eps is added to the root"),
    (1, "no root", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * (m / (1 - b1**t)) / (v / (1 - b2**t) + eps), m, v""",
     "refused: v_hat goes under a root"),
    (1, "v averages g, not its square", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g
return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).abs().sqrt() + eps), m, v""",
     "refused: v keeps b2 of itself and takes in 1 - b2 of g squared"),
    (1, "b1 and 1 - b1 swapped", """m = (1 - b1) * m + b1 * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v""",
     "refused: m keeps b1 of itself"),
    (1, "uphill", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta + lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v""",
     "refused: the step must go against the gradient"),
    (1, "in place", """m.mul_(b1).add_((1 - b1) * g)
v.mul_(b2).add_((1 - b2) * g * g)
return theta.sub_(lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)), m, v""",
     "refused: an argument was changed in place"),
    (1, "theta alone is returned", """m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)""",
     "refused: return three tensors: theta, m, v"),
    (1, "right, by lerp and a rearranged step", """m = torch.lerp(m, g, 1 - b1)
v = torch.lerp(v, g.square(), 1 - b2)
root = (v / (1 - b2 ** t)) ** 0.5
return theta - (lr / (1 - b1 ** t)) * (m / (root + eps)), m, v""", "passes"),
    (1, "right, tensors copied and changed in place", """m, v, theta = m.clone(), v.clone(), theta.clone()
m.mul_(b1).add_(g, alpha=1 - b1)
v.mul_(b2).addcmul_(g, g, value=1 - b2)
theta.addcdiv_(m / (1 - b1**t), (v / (1 - b2**t)).sqrt() + eps, value=-lr)
return theta, m, v""", "passes"),
    (2, "every weight in 4 bits", _LINEARS + """if method == "full": return 16 * total
return (2 * total if method == "LoRA" else 0.515869 * total) + 16 * n""",
     "refused: embedding, head and norms stay in 16 bits"),
    (2, "half a byte, no scales", _LINEARS + """if method == "full": return 16 * total
return (2 * total if method == "LoRA" else 0.5 * linears + 2 * (total - linears)) + 16 * n""",
     "refused: 0.5 has no scales in it"),
    (2, "adapter in 16 bits, untrained", _LINEARS + """if method == "full": return 16 * total
return (2 * total if method == "LoRA" else 0.515869 * linears + 2 * (total - linears)) + 2 * n""",
     "refused: the adapter is trained: 16 bytes"),
    (2, "no adapter", _LINEARS + """if method == "full": return 16 * total
return 2 * total if method == "LoRA" else 0.515869 * linears + 2 * (total - linears)""",
     "refused: the adapter is missing"),
    (2, "LoRA trains everything", _LINEARS + """if method == "full": return 16 * total
return 16 * (total + n) if method == "LoRA" else 0.515869 * linears + 2 * (total - linears) + 16 * n""",
     "refused: LoRA: the frozen weights take 2 bytes"),
    (2, "full without the master copy", _LINEARS + """if method == "full": return 12 * total
return (2 * total if method == "LoRA" else 0.515869 * linears + 2 * (total - linears)) + 16 * n""",
     "refused: full fine-tuning, mixed precision"),
    (2, "no grouped-query attention", _LINEARS + """if method == "full": return 16 * total
linears = c.num_hidden_layers * (4 * C * C + 3 * C * c.intermediate_size)
return (2 * total if method == "LoRA" else 0.515869 * linears + 2 * (total - linears)) + 16 * n""",
     "refused: QLoRA: k and v are narrower"),
    (2, "embedding and head counted twice although tied", _LINEARS + """if method == "full": return 16 * total
rest = 2 * c.vocab_size * C + (2 * c.num_hidden_layers + 1) * C
return (2 * total if method == "LoRA" else 0.515869 * linears + 2 * rest) + 16 * n""",
     "refused: SmolLM2: head and embedding are one matrix"),
    (2, "in GiB", _LINEARS + """if method == "full": return 16 * total / GiB
return ((2 * total if method == "LoRA" else 0.515869 * linears + 2 * (total - linears)) + 16 * n) / GiB""",
     "refused: return bytes"),
    (2, "right, from the tables and norms", _LINEARS + """tables = c.vocab_size * C * (1 if c.tie_word_embeddings else 2)
rest = tables + (2 * c.num_hidden_layers + 1) * C
bytes_of = {"full": 16 * total, "LoRA": 2 * total + 16 * n,
            "QLoRA": 2 * rest + (total - rest) * 0.515869 + n * (4 + 4 + 8)}
return bytes_of[method]""", "passes"),
    (2, "right, counted by the package", """base = without_weights(name)
total = sum(p.numel() for p in base.parameters())
n = lora_count(GPTConfig.preset(name), 16, "all")
if method == "full":
    return total * (2 + 2 + 4 + 8)
return weight_bytes(quantize_model(base) if method == "QLoRA" else base) + 16 * n""", "passes"),
    (3, "no static memory", """free = 76 * GiB
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: the static memory is missing"),
    (3, "GB for GiB", """free = 76 * GB - 16 * N7 / 4
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: 80 GiB are 80 * 2**30 bytes"),
    (3, "nothing left free", """free = 80 * GiB - 16 * N7 / 4
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: 4 GiB must stay free"),
    (3, "not spread", """free = 76 * GiB - 16 * N7
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: 16 N bytes do not fit one card"),
    (3, "all cards together", """free = 4 * 76 * GiB - 16 * N7
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: that is all cards together"),
    (3, "four times the answer of one card", """free = 76 * GiB - 16 * N7 / 4
return tuple(4 * int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: that is all cards together"),
    (3, "rounded, not down", """free = 76 * GiB - 16 * N7 / 4
return tuple(round(free / activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: a part of a sequence"),
    (3, "weights alone, on each card", """free = 76 * GiB - 2 * N7
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (False, True))""",
     "refused: you counted the weights alone"),
    (3, "not whole", """free = 76 * GiB - 16 * N7 / 4
return tuple(free / activations(T=2048, checkpointing=how) for how in (False, True))""",
     "refused: a part of a sequence"),
    (3, "checkpointed first", """free = 76 * GiB - 16 * N7 / 4
return tuple(int(free // activations(T=2048, checkpointing=how)) for how in (True, False))""",
     "refused: all activations kept first"),
    (3, "right, from per_token", """free = 76 * GiB - sum(RECIPES["mixed precision"]) * N7 / 4
with_all = int(free / (2048 * per_token))
return [with_all, int(free / activations(T=2048, checkpointing=True))]""", "passes"),
    (3, "right, by trying", """def fits(k, **how):
    return 4 * N7 + activations(sequences=k, T=2048, **how) + 4 * GiB <= 80 * GiB
return (max(k for k in range(1, 9) if fits(k)),
        max(k for k in range(40, 50) if fits(k, checkpointing=True)))""", "passes"),
]
