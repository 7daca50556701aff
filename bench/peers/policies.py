#!/usr/bin/env python3
"""The policies of bench_shares beside their Python counterparts, on the same weights, in one run: prints a table.

    cmake --preset release -DATTENTION_BALANCER_BENCH=ON && cmake --build --preset release --target bench_shares
    python3 -m venv build/peers/venv
    for r in requirements requirements-torch requirements-policies; do
      build/peers/venv/bin/python -m pip install --no-deps --only-binary :all: --require-hashes -r bench/peers/$r.txt
    done
    build/peers/venv/bin/python bench/peers/policies.py

Both sides use one thread and double. Results are checked before they are timed: shares and units must add up; units and
selections that are not ours are said to be so; tasks, and the state that a feedback leaves, must be ours. These are
compared by the sum over logits. Where no package has the policy, the peer is what one would write with NumPy: bisection
on nu, 60 steps; only the quota method, which awards unit by unit, is left to the heaps of Python. A peer that would need
more than its limit of memory or time at a size is left out there.
"""
import argparse
import heapq
import json
import os
import pathlib
import statistics
import subprocess
import time

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from apportionment import methods  # noqa: E402
from entmax import entmax15, entmax_bisect, sparsemax  # noqa: E402

torch.set_num_threads(1)


def make_logits(n):
    """As in bench/shares.cpp: splitmix64 of the index, uniform in [-3, 3)."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(float) * 2.0**-53 * 6 - 3


def bisect(total_at, low, high):
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total_at(middle) < 1 else (low, middle)
    return high


def bounded(w, floor, cap):
    nu = bisect(lambda nu: np.clip(nu * w, floor, cap).sum(), 0, cap / w.min())
    return np.clip(nu * w, floor, cap)


def capped_simplex(w, cap):
    nu = bisect(lambda nu: np.clip(w + nu, 0, cap).sum(), -w.max(), cap)
    return np.clip(w + nu, 0, cap)


def normalised(log_r):
    x = log_r - log_r.max()
    return x - np.log(np.exp(x).sum())


def mixed(log_r, alpha):
    return np.logaddexp(np.log1p(-alpha) + log_r, np.log(alpha / len(log_r)))


def feedbacks(n):
    """{feedback: one cycle, from the same state and signal as in bench/shares.cpp}"""
    z = make_logits(n)
    state = normalised(z / 2)
    w = np.exp(z)
    w = w / w.max()
    return {
        "plain": lambda: normalised(state + np.log(w)),
        "leaky": lambda: normalised(0.5 * state + 0.5 * np.log(np.maximum(w, 1e-6 * w.max()))),
        "ema": lambda: np.log(0.5 * np.exp(state) + 0.5 * w / w.sum()),
        "fixed_share": lambda: mixed(normalised(state + np.log(w)), 0.01),
        "hedge": lambda: normalised(state - 0.1 * w),
        "bias_balancing": lambda: normalised(state + 0.01 * np.sign(w.mean() - w)),
    }


def bits(w, total):
    """Halves of log2 w, shifted by bisection and rounded up; what is left goes where it saves most."""
    half = np.log2(w) / 2
    low, high = -half.max(), total - half.min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(np.ceil(half + middle), 0).sum() <= total else (low, middle)
    b = np.maximum(np.ceil(half + low), 0).astype(int)
    left = total - b.sum()
    if left:
        b[np.argsort(-(half - b), kind="stable")[:left]] += 1
    return b


def divisor(w, total, offset):
    """A stationary divisor method: bisection on nu, what is left to the largest w / (units + offset)."""
    low, high = 0.0, (total + len(w)) / w.sum()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.floor(middle * w + 1 - offset).sum() <= total else (low, middle)
    units = np.floor(low * w + 1 - offset).astype(int)
    left = total - units.sum()
    if left:
        units[np.argsort(-w / (units + offset), kind="stable")[:left]] += 1
    return units


def hamilton(w, total):
    q = total * (w / w.sum())
    units = np.floor(q).astype(int)
    units[np.argsort(units - q, kind="stable")[:total - units.sum()]] += 1
    return units


def huntington_hill(w, total):
    """As `divisor`: item i has its unit a + 1 where nu w_i >= sqrt(a (a + 1))."""
    low, high = 0.0, 2 * (total + len(w)) / w.sum()

    def at(nu):
        x = nu * w
        return np.floor((np.sqrt(1 + 4 * x * x) - 1) / 2) + 1

    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() <= total else (low, middle)
    units = at(low).astype(int)
    left = total - units.sum()
    if left:
        units[np.argsort(-w / np.sqrt(units * (units + 1.0)), kind="stable")[:left]] += 1
    return units


def quota(w, total):
    """Unit h goes to the largest w / (a + 1) of those with a < h * (their part of all weights)."""
    part = (w / w.sum()).tolist()
    weights, units = w.tolist(), [0] * len(w)
    ready, waiting = [], [(0.0, i) for i in range(len(w))]
    for h in range(1, total + 1):
        while waiting and waiting[0][0] < h:
            i = heapq.heappop(waiting)[1]
            heapq.heappush(ready, (-weights[i] / (units[i] + 1), -weights[i], i))
        i = heapq.heappop(ready)[2]
        units[i] += 1
        heapq.heappush(waiting, (units[i] / part[i], i))
    return np.array(units)


def inverse_cdf(w, budget):
    cdf = np.cumsum(w)
    return np.unique(np.searchsorted(cdf, cdf[-1] * ((np.arange(budget) + 0.5) / budget)))


def knapsack(w, costs, budget):
    """The largest values per cost, passing over what does not fit, or the most valuable item alone."""
    rest = np.argsort(-w / costs, kind="stable")
    best, kept, left = rest[np.argmax(np.where(costs[rest] <= budget, w[rest], 0))], [], budget
    while len(rest := rest[costs[rest] <= left]):
        spent = np.cumsum(costs[rest])
        count = np.searchsorted(spent, left, side="right")
        kept.append(rest[:count])
        left, rest = left - spent[count - 1], rest[count:]
    kept = np.concatenate(kept)
    return np.sort(kept) if w[kept].sum() >= w[best] else np.array([best])


def facility_location(rows, budget):
    """Greedy, every gain of a round at once."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T
    best, free, kept = np.zeros(len(rows)), np.ones(len(rows), bool), []
    for _ in range(budget):
        gain = np.maximum(similarity - best[:, None], 0).sum(axis=0)
        kept.append(np.argmax(np.where(free, gain, -1)))
        free[kept[-1]] = False
        best = np.maximum(best, similarity[:, kept[-1]])
    return np.sort(kept)


def dominant_resource(demands, capacities, w):
    """Progressive filling: in each round the resource that runs out first stops those who need it."""
    parts = demands / capacities
    rate = w / parts.max(axis=1)
    tasks, active, room = np.zeros(len(w)), np.ones(len(w), bool), np.ones(len(capacities))
    while active.any():
        growing = (parts[active] * rate[active, None]).sum(axis=0)
        at = np.divide(room, growing, out=np.full(len(room), np.inf), where=growing > 0)
        first = at.argmin()
        stops = active & (demands[:, first] > 0)
        tasks[stops] = at[first] * rate[stops]
        room = room - (parts[stops] * tasks[stops, None]).sum(axis=0)
        active &= ~stops
    return tasks


def peers(n):
    """{policy: (who, function)} for n items; the function returns shares or units."""
    z = make_logits(n)
    w = np.exp(z)
    p = w / w.sum()
    logits = torch.from_numpy(z)
    costs = 1 + np.arange(n) * 31 % 50
    demands, rows = np.exp(make_logits(4 * n)).reshape(n, 4), make_logits(8 * n).reshape(n, 8)
    of_entmax = {
        "sparsemax": ("entmax.sparsemax", lambda: sparsemax(logits, dim=0)),
        "entmax15": ("entmax.entmax15", lambda: entmax15(logits, dim=0)),
        "entmax1.25": ("entmax.entmax_bisect", lambda: entmax_bisect(logits, alpha=1.25, dim=0)),
    }
    of_numpy = {
        "proportional": ("NumPy", lambda: w / w.sum()),
        "bounded": ("NumPy, bisection", lambda: bounded(w, 0.5 / n, 2.0 / n)),
        "tempered": ("NumPy", lambda: (lambda x: x / x.sum())(w**0.5)),
        "euclidean": ("NumPy, bisection", lambda: capped_simplex(p, 2.0 / n)),
        "hamilton": ("NumPy", lambda: hamilton(w, 10 * n)),
        "sainte_lague": ("NumPy, bisection", lambda: divisor(w, 10 * n, 0.5)),
        "dhondt": ("NumPy, bisection", lambda: divisor(w, 10 * n, 1)),
        "adams": ("NumPy, bisection", lambda: divisor(w, 10 * n, 0)),
        "bits": ("NumPy, bisection", lambda: bits(w, 10 * n)),
        "huntington_hill": ("NumPy, bisection", lambda: huntington_hill(w, 10 * n)),
        "quota": ("Python heapq", lambda: quota(w, 10 * n)),
        "top_k": ("NumPy argpartition", lambda: np.sort(np.argpartition(w, n - n // 10)[n - n // 10:])),
        "threshold": ("NumPy", lambda: np.flatnonzero(w >= 1)),
        "inverse_cdf": ("NumPy searchsorted", lambda: inverse_cdf(w, n // 10)),
        "knapsack": ("NumPy argsort", lambda: knapsack(w, costs, costs.sum() // 4)),
        "facility_location": ("NumPy", lambda: facility_location(rows, n // 10)),
        "dominant_resource": ("NumPy", lambda: dominant_resource(demands, np.full(4, float(n)), w)),
    }
    of_apportionment = {}
    if n <= 1000:  # it writes one price per item and unit to memory, of which there are 10 n^2
        names = {"hamilton": "hamilton", "sainte_lague": "saintelague", "dhondt": "dhondt",
                 "huntington_hill": "huntington", "adams": "adams", "quota": "quota"}
        parties = [str(i) for i in range(n)]
        for ours, theirs in names.items():
            if theirs == "quota" and n > 100:
                continue
            of_apportionment[ours] = (
                "apportionment", lambda theirs=theirs: np.array(methods.compute(theirs, w, 10 * n, parties=parties)))
    of_numpy |= {name: ("NumPy", cycle) for name, cycle in feedbacks(n).items()}
    return of_numpy | of_entmax | of_apportionment


SELECTIONS = ("top_k", "threshold", "inverse_cdf", "knapsack", "facility_location")


def check(policy, n, result, moment):
    """What is to be said of a result beside ours, whose sum over logits is `moment`; fails where it must be ours."""
    result, z = np.asarray(result), make_logits(n)
    if policy in SELECTIONS:
        difference = z[result].sum() - moment
        return "" if abs(difference) < 1e-9 * n else f" (keeps others: {difference:+.2g} of the logits)"
    if policy == "dominant_resource":
        assert abs((result * z).sum() - moment) < 1e-9 * (result * abs(z)).sum(), policy
        return ""
    if moment is not None and result.dtype.kind == "i":
        assert result.sum() == 10 * n, policy
        # A unit elsewhere changes it by far more than its rounding.
        theirs = (result * z).sum()
        return "" if abs(theirs - moment) < 1e-9 * 10 * n else f" (other units: {theirs - moment:+.2g} of the logits)"
    if moment is not None:
        r = np.exp(result)
        assert abs(r.sum() - 1) < 1e-9 and abs((r * z).sum() - moment) < 1e-9, policy
        return ""
    if not abs(result.sum() - 1) < 1e-6:
        return f" (misses the total by {abs(result.sum() - 1):.2g})"
    return ""


def seconds_of(function, least=0.15):
    """Median of the seconds of calls that take `least` together, five at least, after one that warms up."""
    function()
    times = []
    while len(times) < 5 or (sum(times) < least and len(times) < 2000):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
        if times[-1] > 1:
            break
    return statistics.median(times)


def main():
    root = pathlib.Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", default=root / "build" / "bench" / "bench_shares", help="the program bench_shares")
    parser.add_argument("--items", type=int, nargs="+", default=[100, 1000, 10000, 100000, 1000000])
    parser.add_argument("--only", default="", help="policies whose names contain this")
    options = parser.parse_args()
    listed = subprocess.run([options.ours, "--benchmark_list_tests"], check=True, capture_output=True, text=True).stdout
    print("| policy | items | ns per item | counterpart | its ns per item | times |")
    print("|---|---|---|---|---|---|")
    for policy in dict.fromkeys(name.split("/")[0] for name in listed.split()):
        if options.only not in policy:
            continue
        for n in options.items:
            name = f"{policy}/N:{n}"
            if name not in listed.split():
                continue
            # One after the other, so that both meet the same machine.
            run = subprocess.run([options.ours, f"--benchmark_filter=^{name}$", "--benchmark_format=json",
                                  "--benchmark_min_time=0.1"], check=True, capture_output=True, text=True)
            result = json.loads(run.stdout)["benchmarks"][0]
            assert not result.get("error_occurred"), result
            ours = result["real_time"] * {"ns": 1, "us": 1e3, "ms": 1e6}[result["time_unit"]] / n
            if policy in (found := peers(n)):
                who, function = found[policy]
                who += check(policy, n, function(), result.get("moment"))
                theirs = seconds_of(function) * 1e9 / n
                print(f"| {policy} | {n} | {ours:.1f} | {who} | {theirs:.1f} | {theirs / ours:.1f} |", flush=True)
            else:
                print(f"| {policy} | {n} | {ours:.1f} | - | - | - |", flush=True)


if __name__ == "__main__":
    main()
