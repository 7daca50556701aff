#!/usr/bin/env python3
"""Golden data for the methods of apportion, made by the PyPI package `apportionment` in exact fractions.

    python3 -m pip install apportionment==1.0
    python3 make_apportion.py            # writes apportion.csv beside this script

Cases with a tie are left out: there every library may choose, and ours is tested elsewhere. Where the package itself
works in floating point (Huntington-Hill) or does not report ties (quota), they are found here, in fractions.
"""

import pathlib
import random
from fractions import Fraction

from apportionment import methods

random.seed(2306)


def ties_of_huntington(weights, total):
    """Whether the last unit is a tie of two prices w^2 / (a (a + 1))."""
    if total < len(weights):
        order = sorted(weights, reverse=True)
        return total > 0 and order[total - 1] == order[total]
    prices = sorted((Fraction(w * w, a * (a + 1)) for w in weights for a in range(1, total + 1)), reverse=True)
    left = total - len(weights)
    return left > 0 and prices[left - 1] == prices[left]


def ties_of_quota(weights, total):
    """Whether two items are equally entitled to a unit at any point."""
    units = [0] * len(weights)
    for house in range(1, total + 1):
        prices = {i: Fraction(w, units[i] + 1) for i, w in enumerate(weights) if house * w > units[i] * sum(weights)}
        best = max(prices.values())
        if sum(p == best for p in prices.values()) > 1:
            return True
        units[max(prices, key=prices.get)] += 1
    return False


lines = ["# method,total,weights,units; made by make_apportion.py"]
for ours, theirs in (("hamilton", "hamilton"), ("sainte_lague", "saintelague"), ("dhondt", "dhondt"),
                     ("huntington_hill", "huntington"), ("adams", "adams"), ("quota", "quota")):
    made = 0
    while made < 60:
        n = random.choice((1, 2, 3, 5, 8, 13, 21))
        largest = random.choice((10, 1000, 10**6))
        weights = [random.randint(1, largest) for _ in range(n)]
        if made % 4 == 0:
            weights[0] = largest * n  # one giant: quota and rounding pull apart
        total = random.choice((1, 7, 10, 11, 100, 435, 1000) if ours != "quota" else (1, 7, 10, 11, 100, 200))
        if ours == "huntington_hill" and ties_of_huntington(weights, total):
            continue
        if ours == "quota" and ties_of_quota(weights, total):
            continue
        try:
            units = methods.compute(theirs, weights, total, fractions=True, parties=[str(i) for i in range(n)],
                                    tiesallowed=ours in ("huntington_hill", "quota"))
        except methods.TiesException:
            continue
        assert sum(units) == total
        lines.append(f"{ours},{total},{' '.join(map(str, weights))},{' '.join(map(str, units))}")
        made += 1
(pathlib.Path(__file__).parent / "apportion.csv").write_text("\n".join(lines) + "\n")
