"""Answers to the exercises of notebook 10: (exercise, label, code in place of the solution's lines,
what comes out)."""
RIGGED = """    shares = {}
    for run in sweep["runs"]:
        if run["task"] == task:
            shares.setdefault((run["arm"], run["lr"]), []).append(run["share"])
    both = sorted({lr for arm, lr in shares if arm == winner} & {lr for arm, lr in shares if arm == loser})
"""
FITS = """    for name, settings in PLANS.items():
        parts = planned(Run(config, seq=tokens, r=16, **settings))
        total = sum(parts.values()) / 2**30
        if total + 1 <= card:
            return name, total
"""
ONE = "    one = at_full_size(\"lora\", preset)[\"trainable\"] // 8\n"
ANSWERS = [
    (1, "from the means of the package, a loop", "    means = {(f['arm'], f['lr']): f['share'] for f in stored_means() if f['task'] == task}\n    best, distance = None, -2\n    for (arm, lr), share in sorted(means.items()):\n        if arm == winner and (loser, lr) in means and share - means[loser, lr] > distance:\n            best, distance = lr, share - means[loser, lr]\n    return best", "passes"),
    (1, "the distance", RIGGED + "    return max(mean(shares[winner, lr]) - mean(shares[loser, lr]) for lr in both)", "refused: return the rate"),
    (1, "winner and loser exchanged", RIGGED + "    return max(both, key=lambda lr: mean(shares[loser, lr]) - mean(shares[winner, lr]))", "refused: the loser wins"),
    (1, "the winner's best rate", RIGGED + "    return max(both, key=lambda lr: mean(shares[winner, lr]))", "refused: the winner's own best rate"),
    (1, "every task", RIGGED.replace('run["task"] == task', "True") + "    return max(both, key=lambda lr: mean(shares[winner, lr]) - mean(shares[loser, lr]))", "refused: is it this task alone"),
    (1, "the loss", RIGGED.replace('run["share"]', '99 if run["loss"] is None else run["loss"]') + "    return min(both, key=lambda lr: mean(shares[winner, lr]) - mean(shares[loser, lr]))", "refused: ("),
    (1, "the best seed", RIGGED + "    return max(both, key=lambda lr: max(shares[winner, lr]) - min(shares[loser, lr]))", "refused: the mean of three shares"),
    (1, "nothing returned", RIGGED, "refused: a learning rate is wanted, got None"),
    (1, "the largest of equal rates", RIGGED + "    return max(both[::-1], key=lambda lr: mean(shares[winner, lr]) - mean(shares[loser, lr]))", "refused: of several equal rates the smallest"),
    (1, "sums and a loop, no dictionary of lists", "    def of(arm, lr):\n        found = [r['share'] for r in sweep['runs'] if (r['task'], r['arm'], r['lr']) == (task, arm, lr)]\n        return sum(found) / len(found) if found else None\n    best, most = None, -9\n    for lr in sorted({r['lr'] for r in sweep['runs']}):\n        a, b = of(winner, lr), of(loser, lr)\n        if a is not None and b is not None and a - b > most:\n            best, most = lr, a - b\n    return best", "passes"),
    (1, "what the loser did not try counts as 0", RIGGED + "    grid = sorted({lr for arm, lr in shares if arm == winner})\n    return max(grid, key=lambda lr: mean(shares[winner, lr]) - mean(shares.get((loser, lr), [0])))", "refused: only one of the two methods tried"),
    (1, "the ratio", RIGGED + "    return max(both, key=lambda lr: mean(shares[winner, lr]) / max(mean(shares[loser, lr]), 1e-9))", "refused: ("),
    (1, "the distance either way", RIGGED + "    return max(both, key=lambda lr: abs(mean(shares[winner, lr]) - mean(shares[loser, lr])))", "refused: the loser wins"),
    (2, "with torch", "    n = min(len(ours), len(theirs))\n    d = 100 * (torch.tensor(ours[:n], dtype=torch.float64) - torch.tensor(theirs[:n], dtype=torch.float64))\n    return d.mean().item(), (d.std() / n**0.5).item()", "passes"),
    (2, "fraction", "    d = [a - b for a, b in zip(ours, theirs)]\n    return mean(d), summary.spread(d)[1] / len(d)**0.5", "refused: points are hundredths"),
    (2, "the error as a fraction", "    d = [a - b for a, b in zip(ours, theirs)]\n    return 100 * mean(d), summary.spread(d)[1] / len(d)**0.5", "refused: in points, too"),
    (2, "sign", "    d = [100 * (b - a) for a, b in zip(ours, theirs)]\n    return mean(d), summary.spread(d)[1] / len(d)**0.5", "refused: ours minus theirs"),
    (2, "deviation", "    d = [100 * (a - b) for a, b in zip(ours, theirs)]\n    return summary.spread(d)", "refused: divide by the square root of n"),
    (2, "divided by n", "    d = [100 * (a - b) for a, b in zip(ours, theirs)]\n    return mean(d), summary.spread(d)[1] / len(d)", "refused: by its square root"),
    (2, "n in the variance", "    d = [100 * (a - b) for a, b in zip(ours, theirs)]\n    m = mean(d)\n    return m, (sum((x - m)**2 for x in d) / len(d))**0.5 / len(d)**0.5", "refused: n - 1"),
    (2, "unpaired", "    n = min(len(ours), len(theirs))\n    a, b = (summary.spread([100 * x for x in s[:n]]) for s in (ours, theirs))\n    return a[0] - b[0], ((a[1]**2 + b[1]**2) / n)**0.5", "refused: the seeds are paired"),
    (2, "unequal lists: means of all", "    d = [100 * (a - b) for a, b in zip(ours, theirs)]\n    return 100 * (mean(ours) - mean(theirs)), summary.spread(d)[1] / len(d)**0.5", "refused: that both lists have"),
    (2, "nothing returned", "    d = [100 * (a - b) for a, b in zip(ours, theirs)]", "refused: return two numbers"),
    (3, "next of a generator", "    totals = ((name, sum(planned(Run(config, seq=tokens, r=16, **PLANS[name])).values()) / 1024**3) for name in PLANS)\n    return next(((name, total) for name, total in totals if total <= card - 1), None)", "passes"),
    (3, "batch and bytes written out", "    for name in PLANS:\n        parts = planned(Run(config, r=16, batch=1, seq=tokens, **PLANS[name]))\n        if sum(parts.values()) <= (card - 1) * 2**30:\n            return (name, sum(parts.values()) / 2**30)\n    return None", "passes"),
    (3, "the smallest", "    totals = [(sum(planned(Run(config, seq=tokens, r=16, **s)).values()) / 2**30, name) for name, s in PLANS.items()]\n    total, name = min(totals)\n    return (name, total) if total + 1 <= card else None", "refused: not the smallest"),
    (3, "GB", FITS.replace("2**30", "1e9"), "refused: powers of 1000"),
    (3, "no reserve", FITS.replace("total + 1", "total"), "refused: 1 GiB of reserve"),
    (3, "the reserve in the total", FITS.replace("name, total\n", "name, total + 1\n"), "refused: the reserve is not part"),
    (3, "activations left out", FITS.replace("sum(parts.values())", "sum(size for kind, size in parts.items() if kind not in ('activations', 'logits'))"), "refused: the activations, and the logits"),
    (3, "logits left out", FITS.replace("sum(parts.values())", "(sum(parts.values()) - parts['logits'])"), "refused: the logits are missing"),
    (3, "the default rank", FITS.replace(", r=16", ""), "refused: rank 8"),
    (3, "the default length", FITS.replace("seq=tokens, ", "seq=4096, "), "refused: use `tokens`"),
    (3, "the name alone", FITS.replace("return name, total", "return name"), "refused: (name, GiB) is wanted"),
    (3, "the last instead of None", FITS + "    return name, total", "refused: return None"),
    (4, "integers, rounded up by hand", ONE + "    r = 1\n    while r * one * density < bits:\n        r += 1\n    return r", "passes"),
    (4, "rounded down", ONE + "    return max(1, int(bits / (density * one)))", "refused: round up"),
    (4, "rounded to the nearest", ONE + "    return max(1, round(bits / (density * one)))", "refused: round up"),
    (4, "r = 8's count", "    return max(1, math.ceil(bits / (density * at_full_size(\"lora\", preset)[\"trainable\"])))", "refused: that of r = 8"),
    (4, "no density", ONE + "    return max(1, math.ceil(bits / one))", "refused: the density is missing"),
    (4, "times the density", ONE + "    return max(1, math.ceil(bits * density / one))", "refused: divided by the density"),
    (4, "bytes", ONE + "    return max(1, math.ceil(bits / (8 * density * one)))", "refused: bits were divided by 8"),
    (4, "q and v alone", "    return max(1, math.ceil(bits / (density * 32 * 2 * 8192)))", "refused: all seven linears"),
    (4, "a float", ONE + "    return bits / (density * one)", "refused: an int"),
    (4, "a rank of zero", ONE + "    r = bits / (density * one)\n    return int(r) + (r > 1 and r > int(r))", "refused: a rank is at least 1"),
    (4, "2 bits always", ONE + "    return max(1, math.ceil(bits / (2 * one)))", "refused: use `density`"),
    (4, "always the 7B", "    one = at_full_size(\"lora\", \"llama-2-7b\")[\"trainable\"] // 8\n    return max(1, math.ceil(bits / (density * one)))", "refused: use `preset`"),
]
