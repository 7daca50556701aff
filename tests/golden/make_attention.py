#!/usr/bin/env python3
"""Writes attention_golden.csv: attention and its evidence as torch computes them, in double.

    python3 make_attention.py            # needs torch (made with 2.15); writes beside itself

Two ways to each answer, which must agree to 1e-12 before anything is written: the formula spelled out, and torch's own
scaled_dot_product_attention (is_causal, enable_gqa, causal_lower_right, masks) or flex_attention (score and mask
functions). Inputs are multiples of 1/64, written as integers.

A line is `case,array,v0 v1 v2 ...`. Arrays of a case: sizes (B Hq Hkv Nq Nk D Dv), options of the call, the inputs q k v,
then out [B Hq Nq Dv], lse and entropy [B Hq Nq], mass [B Hq Nk], sink_mass [B Hq].
"""

import math
import pathlib

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import flex_attention

torch.manual_seed(20240607)
torch.set_default_dtype(torch.float64)
inf = math.inf
lines = []


def integers(*shape, low=-96, high=97):
    return torch.randint(low, high, shape)


def number(x):
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return repr(int(x)) if x == int(x) else f"{x:.15g}"


def write(case, array, values):
    if isinstance(values, torch.Tensor):
        values = values.flatten().tolist()
    lines.append(f"{case},{array}," + " ".join(number(v) for v in values))


def agree(case, name, a, b):
    difference = (a - b).abs().max().item()
    assert difference < 1e-12, f"{case}: torch's {name} differs from the formula by {difference}"


def make(case, sizes, *, causal=None, window=None, lengths=None, boolean=None, blocks=None, scale=None, softcap=None,
         slopes=None, bias=None, key_bias=None, sinks=None, weights=None):
    B, Hq, Hkv, Nq, Nk, D, Dv = sizes
    qi, ki, vi = integers(B, Hq, Nq, D), integers(B, Hkv, Nk, D), integers(B, Hkv, Nk, Dv)
    q, k, v = qi / 64, ki / 64, vi / 64
    write(case, "sizes", sizes)
    write(case, "q", qi), write(case, "k", ki), write(case, "v", vi)

    # --- The formula ---------------------------------------------------------------------------------------------------
    group = Hq // Hkv
    kk, vv = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    factor = 1 / math.sqrt(D) if scale is None else scale
    s = q @ kk.transpose(-1, -2) * factor
    if scale is not None:
        write(case, "scale", [scale])
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
        write(case, "softcap", [softcap])
    i, j = torch.arange(Nq)[:, None], torch.arange(Nk)[None, :]
    if slopes is not None:
        s = s - torch.tensor(slopes)[None, :, None, None] * (i + Nk - Nq - j).abs()
        write(case, "slopes", slopes)
    if bias is not None:
        s = s + bias
        write(case, "bias_sizes", bias.shape), write(case, "bias", bias)
    if key_bias is not None:
        s = s + key_bias
        write(case, "key_bias", key_bias)
    seen = torch.ones(B, Hq, Nq, Nk, dtype=torch.bool)
    if causal is not None:
        seen = seen & (j <= i + (Nk - Nq if causal == "bottom_right" else 0))
        write(case, "causal_" + causal, [])
    if window is not None:
        left, right = window
        at = i + Nk - Nq
        seen = seen & ((left < 0) | (at - j <= left)) & ((right < 0) | (j - at <= right))
        write(case, "window", window)
    if lengths is not None:
        seen = seen & (j < torch.tensor(lengths)[:, None, None, None])
        write(case, "lengths", lengths)
    if boolean is not None:
        seen = seen & boolean
        write(case, "boolean_sizes", boolean.shape), write(case, "boolean", boolean.long())
    if blocks is not None:
        allowed, query_block, key_block = blocks
        seen = seen & allowed[:, :, i // query_block, j // key_block]
        write(case, "block_sizes", [query_block, key_block, *allowed.shape]), write(case, "blocks", allowed.long())
    s = torch.where(seen, s, -inf)
    sink = torch.full((Hq,), -inf) if sinks is None else torch.tensor(sinks)
    if sinks is not None:
        write(case, "sinks", sinks)
    with_sink = torch.cat([s, sink[None, :, None, None].expand(B, Hq, Nq, 1)], -1)
    lse = torch.logsumexp(with_sink, -1)
    p = torch.where(lse[..., None] == -inf, torch.zeros(()), torch.exp(with_sink - lse[..., None]))
    u = torch.ones(Nq) if weights is None else torch.tensor(weights)
    if weights is not None:
        write(case, "weights", weights)
    out = p[..., :Nk] @ vv

    # --- torch's own ---------------------------------------------------------------------------------------------------
    empty = ~(s > -inf).any(-1)
    if sinks is None and softcap is None and not empty.any():
        additive = torch.where(seen, torch.zeros(()), -inf)
        for term in (bias, key_bias):
            if term is not None:
                additive = additive + term
        if slopes is not None:
            additive = additive - torch.tensor(slopes)[None, :, None, None] * (i + Nk - Nq - j).abs()
        agree(case, "SDPA with a mask", F.scaled_dot_product_attention(q, k, v, additive, scale=factor, enable_gqa=True), out)
        only_causal = all(x is None for x in (window, lengths, boolean, blocks, slopes, bias, key_bias))
        if only_causal and causal is None:
            agree(case, "SDPA", F.scaled_dot_product_attention(q, k, v, scale=factor, enable_gqa=True), out)
        if only_causal and causal == "top_left":
            agree(case, "SDPA is_causal", F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=factor, enable_gqa=True), out)
            agree(case, "causal_upper_left", F.scaled_dot_product_attention(q, kk, vv, causal_upper_left(Nq, Nk), scale=factor), out)
        if only_causal and causal == "bottom_right":
            agree(case, "causal_lower_right", F.scaled_dot_product_attention(q, kk, vv, causal_lower_right(Nq, Nk), scale=factor), out)
    if softcap is not None or slopes is not None:
        # What the function captures is traced: tensors, not numbers.
        cap = None if softcap is None else torch.tensor(softcap)
        slope = None if slopes is None else torch.tensor(slopes)
        shift = torch.tensor(Nk - Nq)

        def score_mod(score, b, h, query, key):
            if cap is not None:
                score = cap * torch.tanh(score / cap)
            if slope is not None:
                score = score - slope[h] * (query + shift - key).abs()
            return torch.where(seen[b, h, query, key], score, -inf)

        if bias is None and key_bias is None:
            flex, flex_lse = flex_attention(q, k, v, score_mod=score_mod, scale=factor, enable_gqa=True, return_lse=True)
            plain = torch.logsumexp(s, -1)
            share = torch.where(plain == -inf, torch.zeros(()), torch.exp(plain - lse))  # what a sink leaves
            visible = ~empty
            agree(case, "flex_attention", (flex * share[..., None])[visible], out[visible])
            agree(case, "lse of flex_attention", flex_lse[visible], plain[visible])

    write(case, "out", out)
    write(case, "lse", lse)
    write(case, "entropy", torch.special.entr(p).sum(-1))
    write(case, "mass", (p[..., :Nk] * u[None, None, :, None]).sum(-2))
    write(case, "exposure", (seen * u[None, None, :, None]).sum(-2))
    write(case, "sink_mass", (p[..., Nk] * u).sum(-1))
    write(case, "empty", empty.sum(-1))


def halves(*shape):
    return integers(*shape) / 32


make("plain", (1, 1, 1, 5, 7, 4, 4))
make("grouped", (2, 4, 2, 3, 6, 5, 2))
make("one query, wide values", (1, 2, 1, 1, 9, 3, 8))
make("scale", (1, 2, 2, 4, 5, 3, 3), scale=0.75)
for align in ("bottom_right", "top_left"):
    make(f"causal {align} Nq < Nk", (1, 2, 1, 4, 9, 4, 3), causal=align)
    make(f"causal {align} Nq = Nk", (2, 1, 1, 6, 6, 4, 3), causal=align)
    make(f"causal {align} Nq > Nk", (1, 2, 1, 9, 4, 4, 3), causal=align)
make("window 2 1", (1, 1, 1, 8, 8, 4, 3), window=(2, 1))
make("window 3 0 Nq < Nk", (1, 1, 1, 4, 9, 4, 3), window=(3, 0))
make("window -1 1 Nq > Nk", (1, 1, 1, 9, 5, 4, 3), window=(-1, 1))
make("boolean", (2, 2, 1, 4, 6, 4, 3), boolean=torch.rand(2, 2, 4, 6) < 0.6)
make("boolean over heads", (2, 2, 1, 4, 6, 4, 3), boolean=torch.rand(2, 1, 1, 6) < 0.7)
make("blocks", (1, 2, 1, 6, 8, 4, 3), blocks=(torch.rand(1, 2, 3, 3) < 0.7, 2, 3))
make("bias", (2, 2, 2, 4, 6, 4, 3), bias=halves(2, 2, 4, 6))
make("bias over queries", (2, 2, 1, 4, 6, 4, 3), bias=halves(1, 2, 1, 6))
make("additive mask", (1, 2, 1, 5, 6, 4, 3), bias=torch.where(torch.rand(1, 1, 5, 6) < 0.6, halves(1, 1, 5, 6), -inf))
make("alibi", (1, 4, 2, 5, 8, 4, 3), slopes=[0.25, 0.0625, 0.015625, 0.00390625])
make("alibi causal", (1, 2, 1, 6, 6, 4, 3), slopes=[0.5, 0.125], causal="bottom_right")
make("softcap", (1, 2, 1, 5, 7, 4, 3), softcap=1.5)
make("softcap causal", (1, 2, 1, 6, 6, 4, 3), softcap=0.5, causal="top_left")
make("softcap, bias", (1, 1, 1, 5, 7, 4, 3), softcap=2.0, bias=halves(1, 1, 5, 7))
make("key bias", (2, 2, 1, 4, 7, 4, 3), key_bias=halves(7))
make("key bias with -inf", (1, 1, 1, 4, 5, 4, 3), key_bias=torch.tensor([0.5, -inf, -1.0, -inf, 2.0]))
make("sinks", (1, 3, 1, 5, 6, 4, 3), sinks=[0.5, -2.0, 3.0])
make("sinks, one off, rows empty", (1, 2, 1, 7, 4, 4, 3), sinks=[0.25, -inf], causal="bottom_right")
make("sinks softcap window", (1, 2, 2, 6, 9, 4, 3), sinks=[1.0, -0.5], softcap=1.25, window=(3, 1))
make("lengths", (3, 2, 1, 4, 7, 4, 3), lengths=[7, 3, 0])
make("lengths sinks", (2, 1, 1, 3, 5, 4, 3), lengths=[2, 0], sinks=[-1.5])
make("all of them", (2, 4, 2, 6, 9, 4, 5), scale=0.625, softcap=2.5, slopes=[0.5, 0.25, 0.125, 0.0625],
     bias=halves(1, 4, 6, 9), key_bias=halves(9), causal="bottom_right", window=(5, -1), lengths=[9, 6],
     boolean=torch.rand(2, 1, 6, 9) < 0.8, sinks=[0.0, 1.0, -1.0, -inf], weights=[0.0, 1.0, 0.5, 2.0, 0.25, 1.5])
make("weights", (1, 2, 1, 5, 6, 4, 3), weights=[1.0, 0.0, 0.5, 3.0, 0.125])

path = pathlib.Path(__file__).with_name("attention_golden.csv")
header = f"# made by make_attention.py with torch {torch.__version__}"
path.write_text("\n".join([header, *lines]) + "\n")
print(f"{path.name}: {len(lines)} arrays, {path.stat().st_size} bytes, torch {torch.__version__}")
