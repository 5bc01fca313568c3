"""Answers to the exercises of notebook 08: (exercise, label, code in place of the solution's lines,
what comes out)."""
PLAN = """    C, d_kv = config.hidden_size, config.kv_heads * config.head_dim
    lora = r * (3 * C + d_kv)
    return min({}, {})"""
SHARE = "int(share * config.max_position_embeddings)"
FOLD = "    x = E @ first.weight.T + first.bias\n"
UNDO = """    if same(served):
        return "nothing"
    for name in REPAIRS:
        if same(REPAIRS[name](served)):
            return name"""
ANSWERS = [
    (1, "counted over all layers", "    L, d = config.num_hidden_layers, config.kv_heads * config.head_dim\n    budget = L * r * (3 * config.hidden_size + d)\n    P = 0\n    while 2 * L * (P + 1) * d <= budget and P + 1 <= share * config.max_position_embeddings:\n        P += 1\n    return P", "passes"),
    (1, "floor of the smaller", PLAN.format("math.floor(lora / (2 * d_kv))", SHARE), "passes"),
    (1, "keys only", PLAN.format("lora // d_kv", SHARE), "refused: a slot has a key and a value"),
    (1, "LoRA over all layers, the prefix in one", PLAN.format("config.num_hidden_layers * lora // (2 * d_kv)", SHARE), "refused: in every layer"),
    (1, "prefix as wide as the model", PLAN.format("lora // (2 * C)", SHARE), "refused: d_kv wide, not hidden_size"),
    (1, "v_proj as wide as the model", PLAN.format("4 * r * C // (2 * d_kv)", SHARE), "refused: v_proj is (d_kv, C)"),
    (1, "no window", PLAN.format("lora // (2 * d_kv)", "lora"), "refused: a second limit"),
    (1, "rounded up", PLAN.format("-(-lora // (2 * d_kv))", SHARE), "refused: so 37 are at most"),
    (1, "rounded to the nearest", PLAN.format("round(lora / (2 * d_kv))", SHARE), "refused: so 37 are at most"),
    (1, "share of the window rounded to the nearest", PLAN.format("lora // (2 * d_kv)", "round(share * config.max_position_embeddings)"), "refused: so 33 are at most"),
    (1, "A of LoRA without B", PLAN.format("r * 2 * C // (2 * d_kv)", SHARE), "refused: q and v train"),
    (1, "not a whole number", PLAN.format("lora / (2 * d_kv)", SHARE), "refused: a whole number"),
    (1, "q_proj alone", PLAN.format("2 * r * C // (2 * d_kv)", SHARE), "refused: q and v train"),
    (2, "softmax of both, slots behind", "    scores = q @ torch.cat([k, p_k]).T / q.shape[-1] ** 0.5\n    return scores.softmax(-1)[:, len(k):].sum(-1)", "passes"),
    (2, "largest score subtracted", "    a, b = (q @ keys.T / math.sqrt(q.shape[-1]) for keys in (p_k, k))\n    top = torch.maximum(a.amax(-1), b.amax(-1))[:, None]\n    return (a - top).exp().sum(-1) / ((a - top).exp().sum(-1) + (b - top).exp().sum(-1))", "passes"),
    (2, "exp as it is", "    a, b = ((q @ keys.T / math.sqrt(q.shape[-1])).exp().sum(-1) for keys in (p_k, k))\n    return a / (a + b)", "refused: exp overflows"),
    (2, "exp in double precision", "    a, b = ((q.double() @ keys.double().T / math.sqrt(q.shape[-1])).exp().sum(-1) for keys in (p_k, k))\n    return (a / (a + b)).float()", "refused: exp overflows"),
    (2, "each sum from its own largest score", "    a, b = (q @ keys.T / math.sqrt(q.shape[-1]) for keys in (p_k, k))\n    a, b = ((s - s.amax(-1, keepdim=True)).exp().sum(-1) for s in (a, b))\n    return a / (a + b)", "refused: compare with softmax"),
    (2, "no square root of D", "    a, b = ((q @ keys.T).logsumexp(-1) for keys in (p_k, k))\n    return torch.sigmoid(a - b)", "refused: divided by sqrt(D)"),
    (2, "divided by D", "    a, b = ((q @ keys.T / q.shape[-1]).logsumexp(-1) for keys in (p_k, k))\n    return torch.sigmoid(a - b)", "refused: not by D"),
    (2, "the text's share", "    a, b = ((q @ keys.T / math.sqrt(q.shape[-1])).logsumexp(-1) for keys in (p_k, k))\n    return torch.sigmoid(b - a)", "refused: share of the text"),
    (2, "clamped", "    a, b = ((q @ keys.T / math.sqrt(q.shape[-1])).clamp(-60, 60).exp().sum(-1) for keys in (p_k, k))\n    return a / (a + b)", "refused: must not be cut off"),
    (2, "logs divided, not subtracted", "    a, b = ((q @ keys.T / math.sqrt(q.shape[-1])).logsumexp(-1) for keys in (p_k, k))\n    return a / (a + b)", "refused: compare with softmax"),
    (2, "one number", "    return (q @ torch.cat([p_k, k]).T / math.sqrt(q.shape[-1])).softmax(-1)[:, :len(p_k)].sum(-1).mean()", "refused: one number per query"),
    (3, "F.linear", "    F = torch.nn.functional\n    return F.linear(F.linear(E, first.weight, first.bias).tanh(), second.weight, second.bias)", "passes"),
    (3, "calls the modules", "    return second(prefix.trunk())", "refused: do not call the modules"),
    (3, "calls the whole", "    return prefix()", "refused: do not call the modules"),
    (3, "no tanh", FOLD + "    return x @ second.weight.T + second.bias", "refused: tanh is missing"),
    (3, "tanh at the end", FOLD + "    return torch.tanh(x @ second.weight.T + second.bias)", "refused: not at the end"),
    (3, "no first bias", "    return torch.tanh(E @ first.weight.T) @ second.weight.T + second.bias", "refused: the first bias is missing"),
    (3, "no second bias", FOLD + "    return x.tanh() @ second.weight.T", "refused: the second bias is missing"),
    (3, "no transpose of the square one", "    return torch.tanh(E @ first.weight + first.bias) @ second.weight.T + second.bias", "refused: transpose it"),
    (3, "keys alone", FOLD + "    return (x.tanh() @ second.weight.T + second.bias)[:, :128]", "refused: return (P, 2 d_kv)"),
    (4, "largest difference", "    def same(tensors):\n        return (with_prefix(tensors)(ids) - recorded).abs().max() < 0.01\n" + UNDO, "passes"),
    (4, "nearest of all", "    tried = {\"nothing\": served} | {name: f(served) for name, f in REPAIRS.items()}\n    return min(tried, key=lambda name: round((with_prefix(tried[name])(ids) - recorded).norm().item(), 2))", "passes"),
    (4, "nearest of the four, never nothing", "    return min(REPAIRS, key=lambda name: (with_prefix(REPAIRS[name](served))(ids) - recorded).norm().item())", "refused: wanted 'nothing'"),
    (4, "allclose as it comes", "    def same(tensors):\n        return torch.allclose(with_prefix(tensors)(ids), recorded, rtol=0)\n" + UNDO, "refused: too strict"),
    (4, "bitwise", "    def same(tensors):\n        return torch.equal(with_prefix(tensors)(ids), recorded)\n" + UNDO, "refused: too strict"),
    (4, "likeliest words", "    def same(tensors):\n        return torch.equal(with_prefix(tensors)(ids).argmax(-1)[:, -2:], recorded.argmax(-1)[:, -2:])\n" + UNDO, "refused: wanted"),
    (4, "never nothing", "    for name in REPAIRS:\n        if torch.allclose(with_prefix(REPAIRS[name](served))(ids), recorded, atol=1e-3):\n            return name", "refused: wanted 'nothing'"),
    (4, "one sum of all logits", "    def same(tensors):\n        return abs(with_prefix(tensors)(ids).sum() - recorded.sum()) < 1e3\n" + UNDO, "refused: wanted"),
    (4, "returns the fault's number", "    return 0", "refused: return a name"),
]
