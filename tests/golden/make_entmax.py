#!/usr/bin/env python3
"""Golden data for Sparsemax, Entmax15 and Entmax, made by the PyPI package `entmax` in double.

    python3 -m pip install entmax==1.3
    python3 make_entmax.py            # writes entmax.csv beside this script
"""

import pathlib

import torch
from entmax import entmax15, entmax_bisect, sparsemax

torch.manual_seed(1602)
lines = ["# alpha,logits,shares; made by make_entmax.py"]
for alpha in (2.0, 1.5, 1.05, 1.25, 1.75, 3.0):
    for case in range(16):
        n = (1, 2, 3, 5, 8, 12)[case % 6]
        spread = (0.3, 1.0, 3.0)[case % 3]
        z = torch.randn(n, dtype=torch.float64) * spread
        if case % 5 == 4:
            z[n // 2:] = z[0]  # ties
        if alpha == 2.0:
            p = sparsemax(z, dim=0)
        elif alpha == 1.5:
            p = entmax15(z, dim=0)
        else:
            p = entmax_bisect(z, alpha=alpha, dim=0, n_iter=100)
        assert abs(p.sum().item() - 1) < 1e-12
        logits, shares = (" ".join(repr(x) for x in t.tolist()) for t in (z, p))
        lines.append(f"{alpha},{logits},{shares}")
(pathlib.Path(__file__).parent / "entmax.csv").write_text("\n".join(lines) + "\n")
