#!/usr/bin/env python3
"""This library and others, on the same inputs, in turn: writes a CSV of what each needs. run.sh calls it.

One process per number of threads, pinned to as many processors. For each case every library computes once, and must
give what this one gives, but for what f16 and 8 bits round; then all take turns for several rounds, and the medians
count. The peak of multiply-adds and the bandwidth of plain reads are measured in the same rounds.
"""
import argparse
import csv
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import time

COLUMNS = ["family", "threads", "batch", "heads", "kv_heads", "queries", "keys", "dim", "causal", "who", "seconds",
           "least_seconds", "rounds", "flops", "bytes", "peak_flops", "read_bytes_per_second", "difference", "isa"]

# What the name of a contender that keeps keys and values otherwise than as float ends with: bytes for 32 numbers (ours:
# of 128 that share a scale), and the difference that the rounding may make.
STORAGES = {"bf16": (64, 2e-2), "f16": (64, 4e-3), "int8": (33, 1e-2), "q8_0": (34, 1e-2)}


@dataclasses.dataclass(frozen=True)
class Case:
    family: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    dim: int
    causal: bool = False

    @property
    def name(self):
        text = f"{self.family}/N:{self.keys}/D:{self.dim}/H:{self.batch * self.heads}"
        return text + ("/causal" if self.causal else "")

    @property
    def flops(self):
        pairs = self.queries * self.keys
        if self.causal and self.queries > 1:
            pairs = self.queries * (self.queries + 1) // 2 + self.queries * (self.keys - self.queries)
        return (10 if self.backward else 4) * self.batch * self.heads * pairs * self.dim

    def bytes(self, who):
        """Of queries, keys, values and output, and backward of their gradients, each once."""
        tensors = 4 if self.backward else 2
        stored, _ = STORAGES.get(who.split()[-1], (128, None))
        keys = self.kv_heads * self.keys * stored // 32
        return self.batch * self.dim * tensors * (4 * self.heads * self.queries + keys)

    @property
    def backward(self):
        return self.family == "backward"


def forward_heads(length):
    """Many heads where they are short, so that a call takes long enough to be timed and gives all threads work."""
    return {16: 256, 32: 256, 64: 128, 128: 64, 256: 32, 512: 16, 1024: 8, 2048: 4, 4096: 2}.get(length, 1)


def all_cases(quick):
    lengths = [64, 256, 1024, 4096] if quick else [16 << i for i in range(11)]
    for length in lengths:
        heads = forward_heads(length)
        for dim in [64] if quick else [16, 32, 64, 128] if length <= 512 else [32, 64, 128]:
            yield Case("forward", 1, heads, heads, length, length, dim)
        for dim in [64] if quick else [64, 128]:
            if length in (256, 1024, 4096, 16384):
                yield Case("causal", 1, heads, heads, length, length, dim, True)
    for length in [256, 1024, 4096] if quick else [64 << i for i in range(8)]:
        heads = max(1, forward_heads(length) // 2)
        for dim in [64] if quick else [64, 128]:
            yield Case("backward", 1, heads, heads, length, length, dim)
    for keys in [4096, 32768] if quick else [1024 << i for i in range(8)]:
        yield Case("decode", 1, 32, 8, 1, keys, 128)
    for keys in [] if quick else [4096, 32768, 131072]:
        yield Case("decode", 1, 9, 3, 1, keys, 64)
    for keys in [] if quick else [4096, 32768, 131072]:
        yield Case("drafts", 1, 32, 8, 4, keys, 128, True)


def threads_of(text):
    return len(os.sched_getaffinity(0)) if text == "all" else int(text)


def seconds_of(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Runner:
    def __init__(self, options, threads):
        import numpy
        import libraries
        self.numpy, self.libraries, self.options, self.threads = numpy, libraries, options, threads
        self.ours = libraries.Ours(options.ours)
        self.others, self.backwards, missing = libraries.installed(
            threads, compiled=not options.quick, ggml=options.ggml)
        self.out_of_the_race = set()
        for text in missing:
            print(f"left out: {text}", file=sys.stderr)

    def inputs(self, case):
        random = self.numpy.random.default_rng(1)
        numbers = lambda heads, length: random.standard_normal((case.batch, heads, length, case.dim), self.numpy.float32)
        inputs = [numbers(case.heads, case.queries), numbers(case.kv_heads, case.keys), numbers(case.kv_heads, case.keys)]
        return inputs + [numbers(case.heads, case.queries)] if case.backward else inputs

    def exact_last_query(self, case, q, k, v, dout=None):
        """The last query of each head in double, or its gradient; it sees all keys, causal or not. [B, H, D]"""
        group = case.heads // case.kv_heads
        out = self.numpy.empty((case.batch, case.heads, case.dim))
        for b in range(case.batch):
            for h in range(case.heads):
                keys, values = k[b, h // group].astype(float), v[b, h // group].astype(float)
                scores = keys @ q[b, h, -1].astype(float) * case.dim**-0.5
                weights = self.numpy.exp(scores - scores.max())
                weights /= weights.sum()
                if dout is not None:  # the weights become the gradients of the scores, and the values their keys
                    gradients = values @ dout[b, h, -1].astype(float)
                    weights, values = weights * (gradients - weights @ gradients) * case.dim**-0.5, keys
                out[b, h] = weights @ values
        return out

    def racing_backward(self, case, q, k, v, dout):
        """As contenders, for the gradients of queries, keys and values one after the other."""
        run, result = self.ours.backward(case, q, k, v, dout, self.threads)
        seconds = seconds_of(run)
        expected = [x.copy() for x in result()]
        dq, dk, dv = expected
        worst = max(abs(dq[:, :, -1] - self.exact_last_query(case, q, k, v, dout)).max(),
                    abs(dk.sum(-2, dtype=float)).max() / case.queries,
                    abs(dv.sum(-2, dtype=float) - dout.sum(-2, dtype=float)).max() / case.queries)
        if not worst < 1e-5:
            raise RuntimeError(f"{case.name}: this library is wrong by {worst}")
        found = [("ours", run, worst, seconds)]
        for name, function in self.backwards:
            run, result = function(case, q, k, v, dout, self.threads)
            seconds = seconds_of(run)
            difference = max(abs(x - y).max() for x, y in zip(result(), expected))
            if not difference < 1e-4:
                print(f"{case.name}: {name} gives another result, by {difference}: left out", file=sys.stderr)
                continue
            found.append((name, run, difference, seconds))
        return found

    def contenders(self, case, q, k, v):
        """[name, run, largest difference from this library's result (which is checked against the exact one), seconds]"""
        run, result = self.ours.contender(case, q, k, v, self.threads, False)
        seconds = seconds_of(run)
        expected = result().copy()
        worst = abs(expected[:, :, -1] - self.exact_last_query(case, q, k, v)).max()
        if not worst < 1e-5:
            raise RuntimeError(f"{case.name}: this library is wrong by {worst}")
        found = [("ours", run, worst, seconds)]
        if not case.causal:
            run, result = self.ours.contender(case, q, k, v, self.threads, True)
            seconds = seconds_of(run)
            worst = abs(result() - expected).max()
            mass = self.ours.mass(case)
            if not (worst < 1e-5 and abs(mass.sum(-1) / case.queries - 1).max() < 1e-4):
                raise RuntimeError(f"{case.name}: this library's evidence or output with it is wrong")
            found.append(("ours with mass", run, worst, seconds))
        if case.family == "decode":
            for storage in ("bf16", "f16", "int8"):
                run, result = self.ours.cached(case, q, k, v, self.threads, storage)
                seconds = seconds_of(run)
                worst = abs(result() - expected).max()
                if not worst < STORAGES[storage][1]:
                    raise RuntimeError(f"{case.name}: this library is wrong from {storage} by {worst}")
                found.append((f"ours {storage}", run, worst, seconds))
        for name, function in self.others:
            if self.too_large(case, name) or (case.family, name) in self.out_of_the_race:
                continue
            try:
                run, result = function(case, q, k, v, self.threads)
            except self.libraries.Unsupported as error:
                if str(error):
                    print(f"{case.name}: {name} is left out, {error}", file=sys.stderr)
                    self.out_of_the_race.add((case.family, name))
                continue
            seconds = seconds_of(run)
            difference = abs(result() - expected).max()
            if hasattr(run, "mass") and not case.causal:
                difference = max(difference, (abs(run.mass() - mass) / (1 + mass)).max())
            if not difference < STORAGES.get(name.split()[-1], (None, 1e-4))[1]:
                print(f"{case.name}: {name} gives another result, by {difference}: left out", file=sys.stderr)
                continue
            found.append((name, run, difference, seconds))
        return found

    def too_large(self, case, name):
        """Whether it would write all weights to memory, and they are more than 1 GiB; once they are, it is out of the race."""
        weights = 4 * case.batch * case.heads * case.queries * case.keys
        return weights > 1 << 30 and any(part in name for part in ("softmax", "soft_max", "ONNX Runtime Attention"))

    def measure(self, case):
        inputs = self.inputs(case)
        least, rounds, patience = (0.004, 3, 0.5) if self.options.quick else (0.01, 7, 0.8)
        racing = self.racing_backward(case, *inputs) if case.backward else self.contenders(case, *inputs)
        times = {name: [] for name, *_ in racing}
        estimates = {name: seconds for name, _, _, seconds in racing}
        peaks, reads = [self.ours.fma_peak(self.threads)], []
        k, v = inputs[1:3]
        start = time.perf_counter()
        for turn in range(rounds):
            reads.append(self.ours.read_seconds(k, v, self.threads))
            short = turn > 2 and spent > patience
            for name, run, _, _ in racing[turn % len(racing):] + racing[:turn % len(racing)]:
                # The slow ones have shown by now that they are; when time is short, only what is near is compared.
                behind = estimates[name] / estimates["ours"]
                if turn > 1 and (behind > 4 and estimates[name] > 0.02 or short and behind > 1.6):
                    continue
                time.sleep(0.003)  # threads that wait for more work by spinning go to sleep
                times[name].append(self.time(run, least, estimates[name]))
                estimates[name] = min(times[name])
            spent = time.perf_counter() - start
            if turn >= 2 and spent > 6 * patience:
                break
        peaks.append(self.ours.fma_peak(self.threads))
        # The cases of a family grow: what is far behind would take most of the time from here on.
        behind = {name for name in times if min(times[name]) > 15 * min(times["ours"]) and min(times[name]) > 0.02}
        self.out_of_the_race |= {(case.family, name) for name in behind}
        for name, _, difference, _ in racing:
            yield dict(zip(COLUMNS, [
                *dataclasses.astuple(case)[:1], self.threads, *dataclasses.astuple(case)[1:7], int(case.causal), name,
                f"{statistics.median(times[name]):.4g}", f"{min(times[name]):.4g}", len(times[name]), case.flops,
                case.bytes(name), f"{max(peaks):.4g}", f"{(k.nbytes + v.nbytes) / min(reads):.4g}", f"{difference:.1e}",
                self.ours.isa]))

    def time(self, run, least, estimate):
        """Mean seconds of calls that take at least `least` together, after one that warms up where that matters."""
        if estimate < 0.05:
            estimate = seconds_of(run)
        calls = max(1, round(least / estimate))
        return seconds_of(lambda: [run() for _ in range(calls)]) / calls


def run_here(options, threads):
    runner = Runner(options, threads)
    cases = [case for case in all_cases(options.quick) if re.search(options.select, case.name)]
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    for i, case in enumerate(cases):
        if sys.stderr.isatty() or i % 10 == 0:
            print(f"threads {threads}, case {i + 1} of {len(cases)}: {case.name}", file=sys.stderr)
        writer.writerows(runner.measure(case))
        sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True, help="the module that CMake builds from ours.cpp")
    parser.add_argument("--ggml", help="the module that bench/peers/ggml builds; without it ggml is left out")
    parser.add_argument("--csv", required=True, help="where to write; rows of other cases that are there already stay")
    parser.add_argument("--quick", action="store_true", help="fewer cases, shorter")
    parser.add_argument("--threads", nargs="+", default=["1", "all"], help="numbers, or all")
    parser.add_argument("--select", default="", help="a regular expression that the names of the cases must contain")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return run_here(options, threads_of(options.threads[0]))

    if not any(re.search(options.select, case.name) for case in all_cases(options.quick)):
        sys.exit("no case has such a name; they are " + ", ".join(case.name for case in all_cases(options.quick)))
    processors = cores_first(sorted(os.sched_getaffinity(0)))
    rows = []
    for threads in sorted({min(threads_of(t), len(processors)) for t in options.threads}):
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads),
                           TORCHINDUCTOR_CACHE_DIR=os.path.join(os.path.dirname(os.path.abspath(options.csv)), "inductor"))
        worker = subprocess.run(
            [sys.executable, __file__, "--here", "--ours", options.ours, "--csv", options.csv, "--select", options.select,
             *(["--ggml", options.ggml] if options.ggml else []), *(["--quick"] if options.quick else []),
             "--threads", str(threads)],
            env=environment, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, processors[:threads]))
        if worker.returncode:
            sys.exit(f"the measurement with {threads} threads failed")
        rows += csv.DictReader(worker.stdout.splitlines(), COLUMNS)
    merge(options.csv, rows)


def cores_first(processors):
    """One processor of each core, and then the others: two threads on one core would share its multiply-adds."""
    cores, firsts, others = set(), [], []
    for processor in processors:
        try:
            with open(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list") as file:
                core = file.read().strip()
        except OSError:
            core = str(processor)
        (others if core in cores else firsts).append(processor)
        cores.add(core)
    return firsts + others


def merge(path, rows):
    """Replaces the rows of the cases that were measured and keeps the others."""
    key = lambda row: tuple(str(row[c]) for c in COLUMNS[:9])
    measured = {key(row) for row in rows}
    kept = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            kept = [row for row in csv.DictReader(file) if key(row) not in measured]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


if __name__ == "__main__":
    main()
