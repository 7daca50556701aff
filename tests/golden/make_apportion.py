#!/usr/bin/env python3
"""Golden data for apportion::hamilton and sainte_lague, made by the PyPI package `apportionment` in exact fractions.

    python3 -m pip install apportionment
    python3 make_apportion.py            # writes apportion.csv beside this script

Cases with a tie for the last unit are left out: there every library may choose, and ours is tested elsewhere.
"""

import pathlib
import random

from apportionment import methods

random.seed(2306)
lines = ["# method,total,weights,units; made by make_apportion.py"]
for ours, theirs in (("hamilton", "hamilton"), ("sainte_lague", "saintelague")):
    made = 0
    while made < 60:
        n = random.choice((1, 2, 3, 5, 8, 13, 21))
        largest = random.choice((10, 1000, 10**6))
        weights = [random.randint(1, largest) for _ in range(n)]
        if made % 4 == 0:
            weights[0] = largest * n  # one giant: quota and rounding pull apart
        total = random.choice((1, 7, 10, 11, 100, 435, 1000))
        try:
            units = methods.compute(theirs, weights, total, fractions=True, parties=[str(i) for i in range(n)],
                                    tiesallowed=False)
        except methods.TiesException:
            continue
        assert sum(units) == total
        lines.append(f"{ours},{total},{' '.join(map(str, weights))},{' '.join(map(str, units))}")
        made += 1
(pathlib.Path(__file__).parent / "apportion.csv").write_text("\n".join(lines) + "\n")
