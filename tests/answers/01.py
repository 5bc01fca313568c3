"""Answers to notebook 01's exercises: (exercise, label, code of the solution's lines, what comes out)."""
ANSWERS = [
    (1, "right, written otherwise",
     "    left = 48 - known\n    return 0.0 if left == 0 else (left / 72) * math.log(left)", "passes"),
    (1, "right, limit by max",
     "    n = 48 - known\n    return 4 / 6 * (n / 48) * math.log(max(n, 1))", "passes"),
    (1, "guesses among all 48", "    return 4 * (48 - known) / 48 * math.log(48) / 6",
     "refused: it guesses among the words that are left, not among all 48"),
    (1, "every word unknown", "    n = 48 - known\n    return 4 * math.log(n) / 6 if n else 0.0",
     "refused: only half of the words it hears are unknown"),
    (1, "over four tokens", "    n = 48 - known\n    return 4 * n / 48 * math.log(n) / 4 if n else 0.0",
     "refused: six tokens are scored"),
    (1, "per answer", "    n = 48 - known\n    return 4 * n / 48 * math.log(n) if n else 0.0",
     "refused: per scored token: divide by six"),
    (1, "one word only", "    n = 48 - known\n    return n / 48 * math.log(n) / 6 if n else 0.0",
     "refused: there are four words"),
    (1, "bits", "    n = 48 - known\n    return 4 * n / 48 * math.log2(n) / 6 if n else 0.0",
     "refused: in nats"),
    (1, "log of zero", "    n = 48 - known\n    return 4 * n / 48 * math.log(n) / 6",
     "refused: ln 0 does not exist"),
    (2, "right, written otherwise",
     "    B, H, T, D = q.shape\n    G = k.shape[1]\n    q = q.reshape(B, G, H // G, T, D)\n"
     "    s = torch.einsum('bghtd,bgsd->bghts', q, k) / D ** 0.5\n"
     "    s = s + torch.full((T, T), -math.inf).triu(1)\n"
     "    return torch.einsum('bghts,bgsd->bghtd', s.softmax(-1), v).reshape(B, H, T, D)", "passes"),
    (2, "repeat", "    k, v = (t.repeat(1, q.shape[1] // t.shape[1], 1, 1) for t in (k, v))\n    T = q.shape[2]\n"
     "    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])\n"
     "    return s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v",
     "refused: heads 0, 1, 2 share key head 0"),
    (2, "no mask", "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n"
     "    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v",
     "refused: without a mask a token sees the future"),
    (2, "no scale", "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    return (q @ k.transpose(-1, -2)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v",
     "refused: divide the scores by the root of D"),
    (2, "divided by D", "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    return (q @ k.transpose(-1, -2) / q.shape[-1]).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v",
     "refused: the root of D, not D"),
    (2, "triu(0)", "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])\n"
     "    return s.masked_fill(torch.ones(T, T).triu(0).bool(), -math.inf).softmax(-1) @ v",
     "refused: a token sees itself"),
    (2, "mask hides the past", "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])\n"
     "    return s.masked_fill(torch.ones(T, T).tril(-1).bool(), -math.inf).softmax(-1) @ v",
     "refused: the mask hides the past"),
    (2, "the library's function", "    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)",
     "refused: write the softmax out yourself"),
    (3, "right, written otherwise",
     "    m, v = m.lerp(g, 0.1), v.lerp(g * g, 0.01)\n"
     "    step = lr * math.sqrt(1 - 0.99 ** t) / (1 - 0.9 ** t)\n"
     "    return p - step * m / (v.sqrt() + 1e-8 * math.sqrt(1 - 0.99 ** t)), m, v", "passes"),
    (3, "right, in place",
     "    m.mul_(0.9).add_(g, alpha=0.1)\n    v.mul_(0.99).addcmul_(g, g, value=0.01)\n"
     "    p.sub_(lr * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.99 ** t)).sqrt() + 1e-8))\n    return p, m, v", "passes"),
    (3, "betas swapped", "    m = 0.99 * m + 0.01 * g\n    v = 0.9 * v + 0.1 * g ** 2\n"
     "    return p - lr * (m / (1 - 0.99 ** t)) / ((v / (1 - 0.9 ** t)).sqrt() + 1e-8), m, v",
     "refused: m moves a tenth of the way"),
    (3, "square forgotten", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g.abs()\n"
     "    return p - lr * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.99 ** t)).sqrt() + 1e-8), m, v",
     "refused: v moves a hundredth of the way"),
    (3, "no bias correction", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p - lr * m / (v.sqrt() + 1e-8), m, v", "refused: divide m by 1 - 0.9**t"),
    (3, "only m corrected", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p - lr * m / (1 - 0.9 ** t) / (v.sqrt() + 1e-8), m, v", "refused: the first step is lr long"),
    (3, "uphill", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p + lr * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.99 ** t)).sqrt() + 1e-8), m, v",
     "refused: a step goes against the gradient"),
    (3, "no root", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p - lr * (m / (1 - 0.9 ** t)) / (v / (1 - 0.99 ** t) + 1e-8), m, v",
     "refused: divide by the root of v, not by v"),
    (3, "epsilon under the root", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p - lr * (m / (1 - 0.9 ** t)) / (v / (1 - 0.99 ** t) + 1e-8).sqrt(), m, v",
     "refused: add epsilon to the root"),
    (3, "momentum of SGD", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    return p - lr * m / (1 - 0.9 ** t), m, v", "refused: this is the step of SGD"),
    (3, "returns the corrected means", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    m, v = m / (1 - 0.9 ** t), v / (1 - 0.99 ** t)\n    return p - lr * m / (v.sqrt() + 1e-8), m, v",
     "refused: m moves a tenth of the way"),
]
COMMON = '''    rng, batches = random.Random({seed!r}), []
    for ids, labels in TASKS["novel"].batches(steps, {novel}, seed=0):
        texts = []
        while len(texts) < {old}:
            document = GRAMMAR.draw({rng})
            if document.kind == "{kind}":
                texts.append([0, *tok.encode(document.text), 0])
        old = torch.tensor(texts)
        scored = old.clone()
        {score}
        batches.append((torch.cat([F.pad(ids, {pad}), old]),
                        torch.cat([F.pad(labels, {pad}, value={fill}), scored])))
    return batches'''
DEFAULT = dict(seed="mine", novel=24, old=8, rng="rng", kind="parrot_cued", pad="(0, 1)", fill=-100,
               score="scored[:, :-6] = -100")
def rehearsal(**change):
    return COMMON.format(**DEFAULT | change)
ANSWERS += [
    (4, "right, another seed", rehearsal(), "passes"),
    (4, "right, a generator and choice of documents in advance",
     "    rng = random.Random(5)\n    drawn = (GRAMMAR.draw(rng) for _ in range(10 ** 9))\n"
     "    cued = (d.text for d in drawn if d.kind == 'parrot_cued')\n"
     "    for ids, labels in TASKS['novel'].batches(steps, 24, seed=0):\n"
     "        old = torch.tensor([[0, *tok.encode(next(cued)), 0] for _ in range(8)])\n"
     "        old_labels = torch.cat([torch.full((8, 11), -100), old[:, 11:]], dim=1)\n"
     "        end = torch.zeros(24, 1, dtype=torch.long)\n"
     "        yield (torch.cat([old, torch.cat([ids, end], 1)]),\n"
     "               torch.cat([old_labels, torch.cat([labels, end - 100], 1)]))", "passes"),
    (4, "whole document scored", rehearsal(score="pass"), "refused: score six tokens per row"),
    (4, "padding scored", rehearsal(fill=0), "refused: score six tokens per row"),
    (4, "padded in front", rehearsal(pad="(1, 0)"), "refused: pad at the end"),
    (4, "32 rows of NOVEL and 8 more", rehearsal(novel=32), "refused: 200 batches of 32 x 17"),
    (4, "the same eight in every batch",
     "    texts, rng = [], random.Random(0)\n    while len(texts) < 8:\n        d = GRAMMAR.draw(rng)\n"
     "        if d.kind == 'parrot_cued':\n            texts.append([0, *tok.encode(d.text), 0])\n"
     "    old = torch.tensor(texts)\n    scored = old.clone()\n    scored[:, :-6] = -100\n"
     "    return [(torch.cat([F.pad(i, (0, 1)), old]),\n"
     "             torch.cat([F.pad(l, (0, 1), value=-100), scored]))\n"
     "            for i, l in TASKS['novel'].batches(steps, 24, seed=0)]", "refused: fresh parrots"),
    (4, "the held-out documents",
     "    old = held_out['parrot_cued'].input_ids\n    labels_old = old.clone()\n    labels_old[:, :-6] = -100\n"
     "    out, g = [], torch.Generator().manual_seed(0)\n"
     "    for ids, labels in TASKS['novel'].batches(steps, 24, seed=0):\n"
     "        i = torch.randperm(128, generator=g)[:8]\n"
     "        out.append((torch.cat([F.pad(ids, (0, 1)), old[i]]),\n"
     "                    torch.cat([F.pad(labels, (0, 1), value=-100), labels_old[i]])))\n    return out",
     "refused: fresh parrots"),
    (4, "labels shifted", rehearsal(score="scored[:, :-6] = -100; scored = scored.roll(-1, 1)"),
     "refused: do not shift the labels"),
    (4, "NOVEL alone, padded", "    return [(F.pad(i, (0, 1)), F.pad(l, (0, 1), value=-100))\n"
     "            for i, l in TASKS['novel'].batches(steps, 32, seed=0)]", "refused: 8 cued rows each"),
]
ANSWERS += [
    (1, "known words cost, unknown do not", "    n = known\n    return 4 * n / 48 * math.log(n) / 6 if n else 0.0", "refused: nothing known"),
    (1, "minus sign", "    n = 48 - known\n    return 4 * n / 48 * math.log(1 / n) / 6 if n else 0.0", "refused: half of four words"),
    (2, "softmax over the wrong axis",
     "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])\n"
     "    return s.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-2) @ v",
     "refused: largest difference"),
    (2, "masked after the softmax",
     "    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))\n    T = q.shape[2]\n"
     "    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])\n"
     "    return (s.softmax(-1) * torch.ones(T, T).tril()) @ v", "refused: largest difference"),
    (3, "t counted from zero", "    m = 0.9 * m + 0.1 * g\n    v = 0.99 * v + 0.01 * g ** 2\n"
     "    t = t + 1\n    return p - lr * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.99 ** t)).sqrt() + 1e-8), m, v",
     "refused: the first step is lr long"),
    (3, "beta2 of 0.999", "    m = 0.9 * m + 0.1 * g\n    v = 0.999 * v + 0.001 * g ** 2\n"
     "    return p - lr * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.999 ** t)).sqrt() + 1e-8), m, v",
     "refused: v moves a hundredth"),
]
ANSWERS += [
    (4, "uncued parrots rehearsed instead", rehearsal(kind="parrot_uncued"), "refused: Sizes of tensors must match"),
    (4, "prompt unmasked by one", rehearsal(score="scored[:, :-5] = -100"), "refused: score six tokens per row"),
]
