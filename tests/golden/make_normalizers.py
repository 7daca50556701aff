#!/usr/bin/env python3
"""Writes normalizers_golden.csv: attention by sparsemax, entmax with alpha 1.5 and top-k, and their gradients, also those
of the evidence, in double.

    python3 make_normalizers.py          # needs torch and entmax (made with 2.15 and 1.3); writes beside itself

The weights are those of the package entmax (exact, by sorting) and of torch.topk, the gradients of <dout, out> those of
autograd through them. Where there are dthreshold, dentropy and dmass, their products with what they are named after are
added to that loss; the query at i has the weight i % 3 / 2 in this mass. The format is that of attention_golden.csv. Scores
of a query are multiples of 1/4096, so that its support is exact; threshold is what stands in the place of the lse.
"""

import math
import pathlib

import entmax
import torch

torch.manual_seed(20240609)
torch.set_default_dtype(torch.float64)
lines = []


def number(x):
    return repr(int(x)) if x == int(x) else f"{x:.15g}"


def write(case, array, values):
    if isinstance(values, torch.Tensor):
        values = values.detach().flatten().tolist()
    lines.append(f"{case},{array}," + " ".join(number(v) for v in values))


def make(case, sizes, normalizer, *, k=None, causal=False, scale=1.0, spread=96, evidence=False):
    B, Hq, Hkv, Nq, Nk, D, Dv = sizes
    write(case, "sizes", sizes), write(case, normalizer, [] if k is None else [k]), write(case, "scale", [scale])
    tensors = []
    for name, shape in (("q", (B, Hq, Nq, D)), ("k", (B, Hkv, Nk, D)), ("v", (B, Hkv, Nk, Dv)), ("dout", (B, Hq, Nq, Dv))):
        x = torch.randint(-spread, spread + 1, shape)
        write(case, name, x)
        tensors.append((x / 64).requires_grad_(name != "dout"))
    q, keys, v, dout = tensors
    group = Hq // Hkv
    s = scale * (q @ keys.repeat_interleave(group, 1).transpose(-1, -2))
    seen = torch.ones(Nq, Nk, dtype=torch.bool)
    if causal:
        write(case, "causal", [])
        seen = torch.arange(Nk)[None, :] <= torch.arange(Nq)[:, None] + Nk - Nq
    s = torch.where(seen, s, torch.tensor(-1e9))  # entmax makes NaN of -inf
    if normalizer == "sparsemax":
        p = entmax.sparsemax(s, dim=-1)
        threshold = ((s - p) * (p > 0)).sum(-1) / (p > 0).sum(-1)
    elif normalizer == "entmax15":
        p = entmax.entmax15(s, dim=-1)
        threshold = ((s - 2 * torch.where(p > 0, p, 1.0).sqrt()) * (p > 0)).sum(-1) / (p > 0).sum(-1)
    else:
        kept = torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.topk(min(k, Nk), -1).indices, True) & seen
        cut = torch.where(kept, s, -math.inf)
        p, threshold = torch.softmax(cut, -1), torch.logsumexp(cut, -1)
    out = p @ v.repeat_interleave(group, 1)
    write(case, "out", out), write(case, "threshold", threshold), write(case, "support", (p > 0).sum(-1))
    write(case, "mass", p.sum(-2)), write(case, "entropy", torch.special.entr(p).sum(-1))
    loss = (out * dout).sum()
    if evidence:
        u = torch.arange(Nq) % 3 / 2
        write(case, "weights", u)
        for name, x in (("threshold", threshold), ("entropy", -(p * torch.where(p > 0, p, 1.0).log()).sum(-1)),
                        ("mass", (p * u[:, None]).sum(-2))):
            d = torch.randint(-96, 97, x.shape)
            write(case, "d" + name, d)
            loss = loss + (x * d / 64).sum()
    for name, gradient in zip("qkv", torch.autograd.grad(loss, [q, keys, v])):
        write(case, "d" + name, gradient)


for name, k in (("sparsemax", None), ("entmax15", None), ("top_k", 3)):
    make(name, (1, 1, 1, 5, 9, 4, 3), name, k=k)
    make(name + " grouped", (2, 4, 2, 3, 8, 5, 2), name, k=k, scale=0.5)
    make(name + " causal", (1, 2, 1, 7, 7, 4, 3), name, k=k, causal=True, scale=0.25)
    make(name + " close", (1, 1, 1, 4, 20, 3, 3), name, k=k, scale=0.125, spread=32)
    make(name + " far", (1, 1, 1, 4, 9, 4, 3), name, k=k, scale=8.0)
# After the others, so that their numbers stay what they were.
for name, k in (("sparsemax", None), ("entmax15", None), ("top_k", 3)):
    make(name + " evidence", (1, 2, 1, 4, 7, 3, 3), name, k=k, evidence=True)
    make(name + " evidence, causal", (2, 2, 1, 4, 4, 3, 2), name, k=k, causal=True, scale=0.5, evidence=True)
    make(name + " evidence, close", (1, 1, 1, 3, 12, 3, 2), name, k=k, scale=0.125, spread=32, evidence=True)

path = pathlib.Path(__file__).with_name("normalizers_golden.csv")
header = f"# made by make_normalizers.py with torch {torch.__version__} and entmax 1.3"
path.write_text("\n".join([header, *lines]) + "\n")
print(f"{path.name}: {len(lines)} arrays, {path.stat().st_size} bytes")
