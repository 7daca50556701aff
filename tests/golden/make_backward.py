#!/usr/bin/env python3
"""Writes backward_golden.csv: gradients of attention and of its evidence, by torch's autograd in double.

    python3 make_backward.py             # needs torch (made with 2.15); writes beside itself

The loss is <dout, out> + <dlse, lse> + <dentropy, entropy> + <dmass, mass> of the formula spelled out. Where torch's own
scaled_dot_product_attention can say the same of out, its gradients must agree to 1e-12. Inputs are multiples of 1/64,
written as integers, like the gradients that come in. The format is that of attention_golden.csv; a gradient is named
after its input, with d before it.
"""

import math
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(20240608)
torch.set_default_dtype(torch.float64)
inf = math.inf
lines = []


def integers(*shape):
    return torch.randint(-96, 97, shape)


def number(x):
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return repr(int(x)) if x == int(x) else f"{x:.15g}"


def write(case, array, values):
    if isinstance(values, torch.Tensor):
        values = values.detach().flatten().tolist()
    lines.append(f"{case},{array}," + " ".join(number(v) for v in values))


def make(case, sizes, *, causal=False, lengths=None, scale=None, softcap=None, slopes=None, bias=None, key_bias=None,
         sinks=None, evidence=False):
    B, Hq, Hkv, Nq, Nk, D, Dv = sizes
    write(case, "sizes", sizes)
    leaves = {}

    def leaf(name, values):
        leaves[name] = values.clone().requires_grad_()
        return leaves[name]

    def tensor(name, *shape):
        x = integers(*shape)
        write(case, name, x)
        return x / 64

    q, k, v = (leaf(n, tensor(n, *s)) for n, s in
               (("q", (B, Hq, Nq, D)), ("k", (B, Hkv, Nk, D)), ("v", (B, Hkv, Nk, Dv))))
    dout = tensor("dout", B, Hq, Nq, Dv)
    group = Hq // Hkv
    s = q @ k.repeat_interleave(group, 1).transpose(-1, -2)
    for name, value in (("scale", scale), ("softcap", softcap), ("slopes", slopes), ("sinks", sinks)):
        if value is not None:
            values = torch.tensor(value).reshape(-1)
            write(case, name, values)
            leaf(name, values)
    s = s * (leaves["scale"] if scale is not None else 1 / math.sqrt(D))
    if softcap is not None:
        s = leaves["softcap"] * torch.tanh(s / leaves["softcap"])
    i, j = torch.arange(Nq)[:, None], torch.arange(Nk)[None, :]
    if slopes is not None:
        s = s - leaves["slopes"][None, :, None, None] * (i + Nk - Nq - j).abs()
    if bias is not None:
        write(case, "bias_sizes", bias.shape), write(case, "bias", bias)
        s = s + leaf("bias", bias)
    if key_bias is not None:
        write(case, "key_bias", key_bias)
        s = s + leaf("key_bias", key_bias)
    seen = torch.ones(B, Hq, Nq, Nk, dtype=torch.bool)
    if causal:
        write(case, "causal", [])
        seen = seen & (j <= i + Nk - Nq)
    if lengths is not None:
        write(case, "lengths", lengths)
        seen = seen & (j < torch.tensor(lengths)[:, None, None, None])
    sink = leaves["sinks"] if sinks is not None else torch.full((Hq,), -inf)
    every = torch.cat([s, sink[None, :, None, None].expand(B, Hq, Nq, 1)], -1)
    # Masked scores are replaced, so that no gradient passes; an empty row has weights 0 / 1.
    shown = torch.cat([seen, (sink > -inf)[None, :, None, None].expand(B, Hq, Nq, 1)], -1)
    if bias is not None:
        shown = shown & torch.cat([(s > -inf), torch.ones(B, Hq, Nq, 1, dtype=torch.bool)], -1)
    every = torch.where(shown, every, torch.zeros(()))
    top = torch.where(shown, every, -inf).amax(-1, keepdim=True).detach()
    top = torch.where(top == -inf, torch.zeros(()), top)
    w = torch.where(shown, torch.exp(every - top), torch.zeros(()))
    total = w.sum(-1, keepdim=True)
    empty = total == 0
    p = w / torch.where(empty, torch.ones(()), total)
    lse = (torch.log(torch.where(empty, torch.ones(()), total)) + top).squeeze(-1)
    entropy = -(p * torch.log(torch.where(p > 0, p, torch.ones(())))).sum(-1)
    out = p[..., :Nk] @ v.repeat_interleave(group, 1)
    loss = (out * dout).sum()
    if evidence:
        u = torch.arange(Nq) % 3 / 2
        write(case, "weights", u)
        dlse, dentropy, dmass = tensor("dlse", B, Hq, Nq), tensor("dentropy", B, Hq, Nq), tensor("dmass", B, Hq, Nk)
        mass = (p[..., :Nk] * u[:, None]).sum(-2)
        loss = loss + (torch.where(empty.squeeze(-1), torch.zeros(()), lse) * dlse).sum()
        loss = loss + (entropy * dentropy).sum() + (mass * dmass).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    if not evidence and all(x is None for x in (softcap, slopes, bias, key_bias, sinks)) and not empty.any():
        factor = 1 / math.sqrt(D) if scale is None else scale
        theirs = F.scaled_dot_product_attention(q, k, v, seen, scale=factor, enable_gqa=True)
        for mine, other in zip(gradients, torch.autograd.grad((theirs * dout).sum(), [q, k, v])):
            assert (mine - other).abs().max() < 1e-12, f"{case}: SDPA differs"
    write(case, "out", out)
    for name, gradient in zip(leaves, gradients):
        write(case, "d" + name, gradient)


def halves(*shape):
    return integers(*shape) / 32


make("plain", (1, 1, 1, 5, 7, 4, 3))
make("grouped", (2, 4, 2, 3, 6, 5, 2))
make("causal", (1, 2, 1, 6, 9, 4, 3), causal=True)
make("rows empty", (1, 2, 2, 7, 4, 4, 3), causal=True)
make("lengths", (2, 2, 1, 4, 7, 4, 3), lengths=[7, 3])
make("scale", (1, 2, 2, 4, 5, 3, 3), scale=0.75)
make("softcap", (1, 2, 1, 5, 7, 4, 3), softcap=1.5)
make("alibi", (1, 4, 2, 5, 8, 4, 3), slopes=[0.25, 0.0625, 0.015625, 0.00390625])
make("bias", (2, 2, 1, 4, 6, 4, 3), bias=halves(2, 2, 4, 6))
make("bias over the batch", (2, 2, 1, 4, 6, 4, 3), bias=halves(1, 2, 4, 6))
make("bias over heads and queries", (2, 2, 1, 4, 6, 4, 3), bias=halves(2, 1, 1, 6))
make("key bias", (2, 2, 1, 4, 7, 4, 3), key_bias=halves(7))
make("sinks", (1, 3, 1, 5, 6, 4, 3), sinks=[0.5, -2.0, 3.0])
make("sinks, rows empty", (1, 2, 1, 7, 4, 4, 3), sinks=[0.5, -1.0], causal=True, evidence=True)
make("evidence", (1, 2, 1, 5, 7, 4, 3), evidence=True)
make("evidence, rows empty", (1, 2, 1, 7, 4, 4, 3), causal=True, evidence=True)
make("all of them", (2, 4, 2, 6, 9, 4, 5), scale=0.625, softcap=2.5, slopes=[0.5, 0.25, 0.125, 0.0625],
     bias=halves(1, 4, 6, 9), key_bias=halves(9), causal=True, lengths=[9, 6], sinks=[0.0, 1.0, -1.0, 0.5], evidence=True)

path = pathlib.Path(__file__).with_name("backward_golden.csv")
header = f"# made by make_backward.py with torch {torch.__version__}"
path.write_text("\n".join([header, *lines]) + "\n")
print(f"{path.name}: {len(lines)} arrays, {path.stat().st_size} bytes, torch {torch.__version__}")
