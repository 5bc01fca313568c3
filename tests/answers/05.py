"""(exercise, label, code that replaces the solution's lines, "refused: fragment" or "passes")"""
ANSWERS = [
    # 1: read one weight
    (1, "low half first", """    position = row * columns + column
    byte = int(packed[position // 2])
    q = byte >> 4 if position % 2 else byte & 15
    return (NF4_CODE[q] * absmax[position // 64]).item()""", "refused: HIGH half"),
    (1, "without the scale", """    position = row * columns + column
    byte = int(packed[position // 2])
    return NF4_CODE[byte & 15 if position % 2 else byte >> 4].item()""", "refused: multiply by its block"),
    (1, "blocks start anew in each row", """    position = row * columns + column
    byte = int(packed[position // 2])
    q = byte & 15 if position % 2 else byte >> 4
    return (NF4_CODE[q] * absmax[row * (columns // 64) + column // 64]).item()""", "refused: blocks run on across rows"),
    (1, "one scale per row", """    position = row * columns + column
    byte = int(packed[position // 2])
    q = byte & 15 if position % 2 else byte >> 4
    return (NF4_CODE[q] * absmax[row]).item()""", "refused: blocks run on across rows"),
    (1, "one byte per weight", """    position = row * columns + column
    return (NF4_CODE[int(packed[position]) >> 4] * absmax[position // 64]).item()""", "refused: two weights share a byte"),
    (1, "column by column", """    position = column * 6 + row
    byte = int(packed[position // 2])
    q = byte & 15 if position % 2 else byte >> 4
    return (NF4_CODE[q] * absmax[position // 64]).item()""", "refused: row * columns + column"),
    (1, "the code number instead of the level", """    position = row * columns + column
    byte = int(packed[position // 2])
    q = byte & 15 if position % 2 else byte >> 4
    return (q * absmax[position // 64]).item()""", "refused: look the level up"),
    (1, "right, divmod and a shift", """    byte, low = divmod(row * columns + column, 2)
    q = (packed[byte].item() >> (0 if low else 4)) & 0b1111
    return NF4_CODE[q] * absmax[byte // 32]""", "passes"),
    # 2: NF3
    (2, "NF4's p", """    p = 0.9677083
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    code = torch.tensor(sorted([*negative, 0.0, *positive]))
    return code / code.max()""", "refused: NF4's outermost probability"),
    (2, "1/8 and 1/7", """    p = 1 - (1 / 8 + 1 / 7) / 2
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    code = torch.tensor(sorted([*negative, 0.0, *positive]))
    return code / code.max()""", "refused: check the outermost p"),
    (2, "4 negative, 3 positive", """    p = 1 - (1 / 16 + 1 / 14) / 2
    positive = [Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    code = torch.tensor(sorted([*negative, 0.0, *positive]))
    return code / code.max()""", "refused: 3 negative and 4 positive"),
    (2, "1/2 kept on both sides", """    p = 1 - (1 / 16 + 1 / 14) / 2
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5).tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4).tolist()]
    code = torch.tensor(sorted([*negative, *positive]))
    return code / code.max()""", "refused: did 1/2 stay in twice"),
    (2, "not divided", """    p = 1 - (1 / 16 + 1 / 14) / 2
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    return torch.tensor(sorted([*negative, 0.0, *positive]))""", "refused: divide by the largest"),
    (2, "not sorted", """    p = 1 - (1 / 16 + 1 / 14) / 2
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    code = torch.tensor([*negative, 0.0, *positive])
    return code / code.max()""", "refused: sorted"),
    (2, "right, written out", """    p = 1 - 15 / 224
    sides = [Q(p - (p - 0.5) * i / 4) for i in range(4)], [-Q(p - (p - 0.5) * i / 3) for i in range(3)]
    return torch.cat([torch.tensor(sides[1]), torch.zeros(1), torch.tensor(sides[0]).flip(0)]) / Q(p)""", "passes"),
    # 3: affine
    (3, "no rounding of q", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 15).half().float()
    q = ((blocks - low) / step).clamp(0, 15)
    return (low + step * q).view(-1)""", "refused: whole number"),
    (3, "floor", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 15).half().float()
    q = torch.floor((blocks - low) / step).clamp(0, 15)
    return (low + step * q).view(-1)""", "refused: not floor"),
    (3, "16 steps", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 16).half().float()
    q = torch.round((blocks - low) / step)
    return (low + step * q).view(-1)""", "refused: 4 bits name 16"),
    (3, "16 steps, clamped", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 16).half().float()
    q = torch.round((blocks - low) / step).clamp(0, 15)
    return (low + step * q).view(-1)""", "refused: 15 steps, not 16"),
    (3, "float32 constants", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    step = (high - low) / 15
    return (torch.round((blocks - low) / step) * step + low).view(-1)""", "refused: float16"),
    (3, "only the minimum in float16", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), (high - low) / 15
    q = torch.round((blocks - low) / step).clamp(0, 15)
    return (low + step * q).view(-1)""", "refused: float16"),
    (3, "one minimum and maximum for all", """    low, high = w.min(), w.max()
    low, step = low.half().float(), ((high - low) / 15).half().float()
    return low + step * torch.round((w - low) / step).clamp(0, 15)""", "refused: of its own"),
    (3, "without a zero point", """    blocks = w.view(-1, blocksize)
    step = (blocks.abs().amax(dim=1, keepdim=True) / 7).half().float()
    return (torch.round(blocks / step).clamp(-7, 7) * step).view(-1)""", "refused: of its own"),
    (3, "returned as blocks", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 15).half().float()
    return low + step * torch.round((blocks - low) / step).clamp(0, 15)""", "refused: (weights,) flat"),
    (3, "the result in float16, not the constants", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    step = (high - low) / 15
    return (torch.round((blocks - low) / step) * step + low).half().float().view(-1)""", "refused: float16"),
    (3, "right, a loop over blocks", """    out = []
    for block in w.split(blocksize):
        m = block.min().half().float()
        s = ((block.max() - block.min()) / 15).half().float()
        out.append(m + s * ((block - m) / s + 0.5).floor().clamp(0, 15))
    return torch.cat(out)""", "passes"),
    (3, "right, step from the rounded minimum, float16 in between", """    blocks = w.reshape(-1, blocksize)
    m = blocks.min(1, keepdim=True).values.to(torch.float16)
    s = ((blocks.max(1, keepdim=True).values - m.float()) / 15).to(torch.float16)
    q = ((blocks - m.float()) / s.float()).round().clip(0, 15)
    return torch.addcmul(m.float(), s.float(), q).flatten()""", "passes"),
    # 4: weighted medians
    (4, "plain median", """    blocks = w.view(-1, blocksize)
    scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).view(-1)
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        if code[j] not in (-1, 0, 1):
            moved[j] = scaled[q == j].median()
    return moved""", "refused: each value counts absmax times"),
    (4, "absmax squared", """    blocks = w.view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled, weight = (blocks / absmax).view(-1), absmax.expand_as(blocks).reshape(-1)**2
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        if code[j] not in (-1, 0, 1):
            values, order = scaled[q == j].sort()
            total = weight[q == j][order].cumsum(0)
            moved[j] = values[total >= total[-1] / 2][0]
    return moved""", "refused: absmax squared"),
    (4, "weighted mean", """    blocks = w.view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled, weight = (blocks / absmax).view(-1), absmax.expand_as(blocks).reshape(-1)
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        if code[j] not in (-1, 0, 1):
            moved[j] = (scaled * weight)[q == j].sum() / weight[q == j].sum()
    return moved""", "refused: take the median"),
    (4, "Lloyd's rule of section 9", """    fitted = lloyd(w, code, blocksize, rounds=1)
    fitted[[0, 7, 15]] = torch.tensor([-1.0, 0.0, 1.0])
    return fitted""", "refused: take the median"),
    (4, "weights not sorted along", """    blocks = w.view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled, weight = (blocks / absmax).view(-1), absmax.expand_as(blocks).reshape(-1)
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        if code[j] not in (-1, 0, 1):
            values = scaled[q == j].sort().values
            total = weight[q == j].cumsum(0)
            moved[j] = values[total >= total[-1] / 2][0]
    return moved""", "refused: sort these weights"),
    (4, "all sixteen move", """    blocks = w.view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled, weight = (blocks / absmax).view(-1), absmax.expand_as(blocks).reshape(-1)
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        values, order = (scaled[q == j] + 1e-3).sort()
        total = weight[q == j][order].cumsum(0)
        moved[j] = values[total >= total[-1] / 2][0]
    return moved""", "refused: stay where they are"),
    (4, "weights, not w / absmax", """    blocks = w.view(-1, blocksize)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    scaled, weight = (blocks / absmax).view(-1), absmax.expand_as(blocks).reshape(-1)
    q = torch.bucketize(scaled, (code[:-1] + code[1:]) / 2)
    moved = code.clone()
    for j in range(16):
        if code[j] not in (-1, 0, 1):
            values, order = w[q == j].sort()
            total = weight[q == j][order].cumsum(0)
            moved[j] = values[total > total[-1] / 2][0]
    return moved""", "refused: w / absmax, not w"),
    (4, "nothing moves", """    return code.clone()""", "refused: has not moved"),
    (4, "right, by trying every value", """    blocks = w.view(-1, blocksize)
    a = blocks.abs().amax(dim=1, keepdim=True)
    x, a = (blocks / a).flatten(), a.expand_as(blocks).flatten()
    near = (x[:, None] - code).abs().argmin(1)
    out = code.clone()
    for j in set(range(16)) - {0, 7, 15}:
        order = x[near == j].argsort()
        half = (a[near == j][order].cumsum(0) / a[near == j].sum())
        out[j] = x[near == j][order][torch.searchsorted(half, torch.tensor(0.4999999))]
    return out""", "passes"),
]
ANSWERS += [
    (1, "the byte stays a uint8 tensor", """    position = row * columns + column
    byte = packed[position // 2]
    q = byte & 15 if position % 2 else byte >> 4
    return NF4_CODE[q] * absmax[position // 64]""", "refused: only one element"),
    (1, "the whole matrix restored", """    return dequantize(packed, absmax, NF4_CODE)[row * columns + column].item()""", "passes"),
    (2, "1/16 alone", """    p = 1 - 1 / 16
    positive = [Q(v) for v in torch.linspace(p, 0.5, 5)[:-1].tolist()]
    negative = [-Q(v) for v in torch.linspace(p, 0.5, 4)[:-1].tolist()]
    code = torch.tensor(sorted([*negative, 0.0, *positive]))
    return code / code.max()""", "refused: check the outermost p"),
    (3, "no clamp", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 15).half().float()
    q = torch.round((blocks - low) / step)
    return (low + step * q).view(-1)""", "refused: clamp q to 0 .. 15"),
    (3, "q with the unrounded constants, restored with the rounded ones", """    blocks = w.view(-1, blocksize)
    low, high = blocks.amin(dim=1, keepdim=True), blocks.amax(dim=1, keepdim=True)
    step = (high - low) / 15
    q = torch.round((blocks - low) / step)
    return (low.half().float() + step.half().float() * q).view(-1)""", "refused: compute q with the rounded"),
]
