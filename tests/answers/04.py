"""Answers to the exercises of notebook 04: see tests/test_exercises.py."""
ANSWERS = [
    (1, 'another right one', 'return (W.T + s * B @ A).T', 'passes'),
    (1, 'right, by einsum', "return W + s * torch.einsum('or,ri->io', B, A)", 'passes'),
    (1, 'no transpose', 'return W + s * B @ A', 'refused: transpose it'),
    (1, 'no scale', 'return W + (B @ A).T', 'refused: the scale s is missing'),
    (1, 'neither', 'return W + B @ A', 'refused: two mistakes'),
    (1, '(out, in) returned', 'return W.T + s * B @ A', 'refused: this is (out, in)'),
    (1, 'update alone', 'return s * (B @ A).T', 'refused: the update alone'),
    (1, 'in place', """W += s * (B @ A).T
return W""", 'refused: changed in place'),
    (2, 'another right one', """return (torch.cat([w * s * a for (a, _, s), w in zip(adapters, weights)]),
torch.cat([b for _, b, _ in adapters], 1))""", 'passes'),
    (2, 'no s', """return (torch.cat([a for a, _, _ in adapters]),
torch.cat([w * b for (_, b, s), w in zip(adapters, weights)], 1))""", 'refused: the scales s are missing'),
    (2, 'no w', """return (torch.cat([a for a, _, _ in adapters]),
torch.cat([s * b for _, b, s in adapters], 1))""", 'refused: the weights are missing'),
    (2, 'neither', """return (torch.cat([a for a, _, _ in adapters]),
torch.cat([b for _, b, _ in adapters], 1))""", 'refused: weights and scales are missing'),
    (2, '|w|', """return (torch.cat([a for a, _, _ in adapters]),
torch.cat([abs(w) * s * b for (_, b, s), w in zip(adapters, weights)], 1))""", 'refused: the sign of a weight is lost'),
    (2, 'square roots', """return (torch.cat([(w * s) ** 0.5 * a for (a, _, s), w in zip(adapters, weights)]),
torch.cat([(w * s) ** 0.5 * b for (_, b, s), w in zip(adapters, weights)], 1))""", 'refused: a root of a negative weight'),
    (2, 'in both factors', """return (torch.cat([w * s * a for (a, _, s), w in zip(adapters, weights)]),
torch.cat([w * s * b for (_, b, s), w in zip(adapters, weights)], 1))""", 'refused: in both factors'),
    (2, 'stacked the wrong way', """return (torch.cat([a.T for a, _, _ in adapters], 1),
torch.cat([w * s * b.T for (_, b, s), w in zip(adapters, weights)]))""", 'refused: ranks add up'),
    (3, 'another right one', """U, S, Vt = torch.linalg.svd(B @ A)
return S[:r, None] * Vt[:r], U[:, :r]""", 'passes'),
    (3, 'right, through QR', """Qb, Rb = torch.linalg.qr(B)
Qa, Ra = torch.linalg.qr(A.T)
U, S, Vt = torch.linalg.svd(Rb @ Ra.T)
return Vt[:r] @ Qa.T, Qb @ U[:, :r] * S[:r]""", 'passes'),
    (3, 'right, half of S in each', """U, S, Vt = torch.linalg.svd(B @ A)
root = S[:r].sqrt()
return root[:, None] * Vt[:r], U[:, :r] * root""", 'passes'),
    (3, 'S in neither', """U, S, Vt = torch.linalg.svd(B @ A)
return Vt[:r], U[:, :r]""", 'refused: in neither factor'),
    (3, 'S in both', """U, S, Vt = torch.linalg.svd(B @ A)
return S[:r, None] * Vt[:r], U[:, :r] * S[:r]""", 'refused: in both factors'),
    (3, 'root of S in one', """U, S, Vt = torch.linalg.svd(B @ A)
return Vt[:r], U[:, :r] * S[:r].sqrt()""", 'refused: a root of the singular values'),
    (3, 'smallest', """U, S, Vt = torch.linalg.svd(B @ A, full_matrices=False)
return Vt[-r:], U[:, -r:] * S[-r:]""", 'refused: the smallest ones'),
    (3, 'smallest nonzero', """U, S, Vt = torch.linalg.svd(B @ A, full_matrices=False)
k = len(A)
return Vt[k - r:k], U[:, k - r:k] * S[k - r:k]""", 'refused: the smallest ones'),
    (3, 'first rows of A', 'return A[:r], B[:, :r]', 'refused: the first r rows'),
    (3, 'swapped', """U, S, Vt = torch.linalg.svd(B @ A)
return U[:, :r] * S[:r], Vt[:r]""", 'refused: in this order'),
    (3, 'each factor cut by itself', """a, b = torch.linalg.svd(A, full_matrices=False), torch.linalg.svd(B, full_matrices=False)
return a[2][:r], b[0][:, :r] * b[1][:r]""", 'refused: not the best'),
    (4, 'another right one', """chosen = which.clamp(min=0)
update = (B[chosen] @ (A[chosen] @ x[:, :, None]))[:, :, 0]
return x @ W0.T + torch.where((which >= 0)[:, None], s * update, torch.zeros_like(update))""", 'passes'),
    (4, '-1 is the last', 'return x @ W0.T + s * (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0]', 'refused: index -1 picked the last one'),
    (4, 'which > 0', 'return x @ W0.T + s * (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0] * (which > 0)[:, None]', 'refused: test which >= 0'),
    (4, '-1 clamped to 0', """which = which.clamp(min=0)
return x @ W0.T + s * (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0]""", 'refused: row 2 wants no adapter, and got one'),
    (4, 'B A written out per row', """rows = [W0 @ v + (s * B[k] @ (A[k] @ v) if k >= 0 else 0) for v, k in zip(x, which.tolist())]
return torch.stack(rows)""", 'passes'),
    (4, 'no scale', 'return x @ W0.T + (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0] * (which >= 0)[:, None]', 'refused: the scale s is missing'),
    (4, 'no base', 'return s * (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0] * (which >= 0)[:, None]', 'refused: W0 x is missing'),
    (4, 'base masked too', 'return (x @ W0.T + s * (B[which] @ (A[which] @ x[:, :, None]))[:, :, 0]) * (which >= 0)[:, None]', 'refused: row 2 has no adapter'),
    (4, 'last axis left', 'return (x @ W0.T)[:, :, None] + s * (B[which] @ (A[which] @ x[:, :, None]))', 'refused: one output row per row'),
]
