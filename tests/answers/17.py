"""Answers to the exercises of notebook 17: (exercise, label, code in place of the solution's lines,
what comes out)."""
_RUN = 'run = Run(GPTConfig.preset("llama-3-8b"), "{method}", r={r}, batch={batch}, seq={seq}, {more})\naccumulation = {n}'


def _run(method="lora", r=16, batch=1, seq=4096, more="checkpointing=True", n=8):
    return _RUN.format(method=method, r=r, batch=batch, seq=seq, more=more, n=n)


ANSWERS = [
    (1, "two rows at a time", _run(batch=2, n=4), "passes"),
    (1, "fp16", _run(more='dtype="fp16", checkpointing=True'), "passes"),
    (1, "no checkpointing", _run(more="checkpointing=False"), "refused: recompute them"),
    (1, "QLoRA without need", _run(method="qlora"), "refused: quantizing would cost accuracy"),
    (1, "QLoRA without checkpointing", _run(method="qlora", more="checkpointing=False"), "refused: recompute them"),
    (1, "half the length", _run(seq=2048), "refused: 4,096 tokens and r = 16 are given"),
    (1, "rank 2", _run(r=2), "refused: 4,096 tokens and r = 16 are given"),
    (1, "all 8 rows at once", _run(batch=8, n=1), "refused: do not fit"),
    (1, "no accumulation", _run(n=1), "refused: 8 are wanted"),
    (1, "float32 weights", _run(more='dtype="fp32", checkpointing=True'), "refused: do not fit"),
    (1, "full fine-tuning", _run(method="full"), "refused: do not fit"),
    (1, "SGD", _run(more='optimizer="sgd", checkpointing=True'), "refused: AdamW is given"),
    (1, "the 7B", _run().replace("llama-3-8b", "llama-2-7b"), "refused: the model is Llama-3-8B"),
    (2, "by counts, population form", "    ahead = sum(x > y for x, y in zip(a, b))\n    behind = sum(x < y for x, y in zip(a, b))\n    n = len(a)\n    d = (ahead - behind) / n\n    return 100 * d, 100 * (((ahead + behind) / n - d**2) / n) ** 0.5", "passes"),
    (2, "statistics module", "    from statistics import mean, stdev\n    d = [x - y for x, y in zip(a, b)]\n    return 100 * mean(d), 100 * stdev(d) / len(d) ** 0.5", "passes"),
    (2, "root of the differing requests over n", "    n, differ = len(a), sum(x != y for x, y in zip(a, b))\n    return 100 * (sum(a) - sum(b)) / n, 100 * differ**0.5 / n", "refused: subtract the mean of d"),
    (2, "unpaired", "    n = len(a)\n    p, q = sum(a) / n, sum(b) / n\n    return 100 * (p - q), 100 * (p * (1 - p) / n + q * (1 - q) / n) ** 0.5", "refused: pair them"),
    (2, "spread, not error", "    d = torch.tensor(a) - torch.tensor(b)\n    return 100 * d.double().mean().item(), 100 * d.double().std().item()", "refused: the spread of d"),
    (2, "shares", "    d = (torch.tensor(a) - torch.tensor(b)).double()\n    return d.mean().item(), d.std().item() / len(d) ** 0.5", "refused: not as a share"),
    (2, "error as a share", "    d = (torch.tensor(a) - torch.tensor(b)).double()\n    return 100 * d.mean().item(), d.std().item() / len(d) ** 0.5", "refused: so is its error"),
    (2, "b - a", "    d = (torch.tensor(b) - torch.tensor(a)).double()\n    return 100 * d.mean().item(), 100 * d.std().item() / len(d) ** 0.5", "refused: a - b, not b - a"),
    (2, "only the differing requests", "    d = torch.tensor([x - y for x, y in zip(a, b) if x != y]).double()\n    return 100 * d.mean().item(), 100 * d.std().item() / len(d) ** 0.5", "refused: the difference is 3 points"),
    (2, "divided by n", "    d = (torch.tensor(a) - torch.tensor(b)).double()\n    return 100 * d.mean().item(), 100 * d.std().item() / len(d)", "refused: over the root of 200"),
    (3, "norms, other form", "    if (layer(x) - layer.base(x)).norm() > 0:\n        return \"starts as the base\"\n    layer.A.data.add_(0.3), layer.B.data.add_(0.2)\n    gradients = torch.autograd.grad((layer(x) ** 3).sum(), [layer.A, layer.B], allow_unused=True)\n    if any(g is None or g.norm() == 0 for g in gradients):\n        return \"A and B get gradients\"\n    y = layer(x).detach().clone()\n    z = layer.merge()(x).detach()\n    if (z - y).norm() > 1e-3 * y.norm():\n        return \"merged = adapted\"\n    return \"healthy\" if (layer(x) - y).norm() == 0 else \"merging leaves the layer alone\"", "passes"),
    (3, "gradients at the start", "    if not torch.equal(layer(x), layer.base(x)):\n        return \"starts as the base\"\n    layer(x).square().sum().backward()\n    if any(p.grad is None or p.grad.abs().max() == 0 for p in (layer.A, layer.B)):\n        return \"A and B get gradients\"\n    return \"healthy\"", "refused: is accused"),
    (3, "merge compared at B = 0", "    if not torch.equal(layer(x), layer.base(x)):\n        return \"starts as the base\"\n    if not torch.allclose(layer.merge()(x), layer(x), atol=1e-4):\n        return \"merged = adapted\"\n    moved(layer)(x).square().sum().backward()\n    if layer.A.grad is None:\n        return \"A and B get gradients\"\n    return \"healthy\"", "refused: its merge forgets the scale"),
    (3, "no look at gradients", "    if not torch.equal(layer(x), layer.base(x)):\n        return \"starts as the base\"\n    before = moved(layer)(x).detach()\n    if not torch.allclose(layer.merge()(x), before, atol=1e-3):\n        return \"merged = adapted\"\n    return \"healthy\" if torch.equal(layer(x), before) else \"merging leaves the layer alone\"", "refused: never gets a gradient"),
    (3, "does not look at the layer after the merge", "    if not torch.equal(layer(x), layer.base(x)):\n        return \"starts as the base\"\n    moved(layer)(x).square().sum().backward()\n    if layer.A.grad is None:\n        return \"A and B get gradients\"\n    y = layer(x).detach()\n    return \"healthy\" if torch.allclose(layer.merge()(x), y, atol=1e-3) else \"merged = adapted\"", "refused: compare before and after"),
    (3, "compared with the layer after merging", "    if not torch.equal(layer(x), layer.base(x)):\n        return \"starts as the base\"\n    moved(layer)(x).square().sum().backward()\n    if layer.A.grad is None:\n        return \"A and B get gradients\"\n    return \"healthy\" if torch.allclose(layer.merge()(x), layer(x), atol=1e-3) else \"merged = adapted\"", "refused: compare before and after"),
    (3, "always healthy", "    return \"healthy\"", "refused: (you said 'healthy')"),
    (3, "by type", "    names = {\"Lora\": \"healthy\", \"Loud\": \"starts as the base\", \"Halved\": \"A and B get gradients\", \"Unscaled\": \"merged = adapted\", \"Shared\": \"merging leaves the layer alone\"}\n    return names.get(type(layer).__name__, \"healthy\")", "refused: (you said 'healthy')"),
    (3, "nothing returned", "    moved(layer)", "refused: return one of the five names"),
]
