#!/usr/bin/env python3
"""The CSV of peers.py as Markdown tables and plots. run.sh calls it."""
import argparse
import csv
import math
import os
import statistics

from peers import STORAGES

OURS, MASS, EXPLICIT = "ours", "ours with mass", "PyTorch softmax and column sum"
SUMMARY = {"forward": (64, 256, 1024, 2048, 4096, 8192, 16384), "causal": (256, 1024, 4096, 16384),
           "backward": (256, 1024, 4096), "decode": (1024, 4096, 32768, 131072), "drafts": (4096, 32768, 131072)}
README = (("forward", 64, (64, 1024, 4096, 16384)), ("forward", 128, (1024, 4096)), ("causal", 64, (4096,)),
          ("causal", 128, (4096,)), ("backward", 64, (1024,)), ("backward", 128, (4096,)), ("decode", 128, (4096, 131072)))
MARKS = ("<!-- peers: made by bench/peers/report.py --readme -->\n\n", "\n<!-- peers -->")
DECODING = ("decode", "drafts")
TITLES = {"forward": "Forward", "causal": "Causal", "backward": "Backward", "decode": "Decode",
          "drafts": "Decode of four queries"}


def read(path):
    """{(family, threads, dim, keys): {who: row}}, in the order of the keys."""
    cases = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            for name in ("threads", "batch", "heads", "kv_heads", "queries", "keys", "dim"):
                row[name] = int(row[name])
            for name in ("seconds", "flops", "bytes", "peak_flops", "read_bytes_per_second"):
                row[name] = float(row[name])
            cases.setdefault((row["family"], row["threads"], row["dim"], row["keys"]), {})[row["who"]] = row
    order = list(TITLES)
    return dict(sorted(cases.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])))


def peers(case):
    """Those that compute the same as ours does without evidence, from floats too."""
    return {who: row for who, row in case.items() if who not in (OURS, MASS, EXPLICIT) and not rounded(who)}


def rounded(who):
    """Whether it keeps keys and values otherwise than as float."""
    return who.split()[-1] in STORAGES


def best(case):
    return min(peers(case).values(), key=lambda row: row["seconds"], default=None)


def decode(row):
    return row["family"] in DECODING


def speed(row):
    """GFLOP/s, or GB/s of what must be read and written for decode."""
    return (row["bytes"] if decode(row) else row["flops"]) / row["seconds"] / 1e9


def limit(row):
    """The share of what the machine can do: its multiply-adds, or its memory for decode."""
    return speed(row) * 1e9 / (row["read_bytes_per_second"] if decode(row) else row["peak_flops"])


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]).replace("|  |", "| |") + "\n"


def ratio(of, to):
    return f"{of / to:.2f} x"


def summary(cases):
    """One line for each case that the README shows."""
    rows = []
    for (family, threads, dim, keys), case in cases.items():
        if keys not in SUMMARY[family] or dim not in (64, 128) or OURS not in case or not best(case):
            continue
        ours, peer = case[OURS], best(case)
        unit = "GB/s" if decode(ours) else "GFLOP/s"
        rows.append([TITLES[family].lower(), str(keys), str(dim), str(threads), f"{speed(ours):.0f} {unit}",
                     f"{100 * limit(ours):.0f} %", f"{peer['who']}, {speed(peer):.0f}",
                     ratio(peer["seconds"], ours["seconds"]),
                     ratio(case[MASS]["seconds"], ours["seconds"]) if MASS in case else "",
                     ratio(case[EXPLICIT]["seconds"], case[MASS]["seconds"]) if MASS in case and EXPLICIT in case else ""])
    return table(["", "N", "D", "threads", "this library", "of the peak, or of reads", "best other", "faster by", "with mass, time",
                  "PyTorch with mass, time of ours"], rows)


def readme_table(cases):
    """The same for one thread, where the run has the case."""
    rows = []
    for family, dim, lengths in README:
        for keys in lengths:
            case = cases.get((family, 1, dim, keys), {})
            if OURS not in case or not best(case):
                continue
            ours, peer = case[OURS], best(case)
            unit, of = ("GB/s", " of reads") if decode(ours) else ("GFLOP/s", "")
            rows.append([family + (", 32/8 heads" if decode(ours) else ""), str(keys), str(dim), f"{speed(ours):.0f} {unit}",
                         f"{100 * limit(ours):.0f} %{of}", f"{peer['who']}, {speed(peer):.0f}",
                         ratio(peer["seconds"], ours["seconds"])])
    return table(["", "N", "D", "this library", "of the peak", "best other", "faster by"], rows)


def ranges(cases):
    """The least, the median and the most over the cases of the run, by threads."""
    threads = sorted({key[1] for key in cases})

    def row(what, ratio_of, chosen):
        cells = []
        for t in threads:
            found = sorted(r for key, case in cases.items() if key[1] == t and OURS in case and chosen(*key)
                           for r in [ratio_of(case)] if r)
            cells.append(f"{found[0]:.2f} / {statistics.median(found):.2f} / {found[-1]:.2f}" if found else "")
        return [what, *cells]

    def over(who, reference=OURS):
        """The time of who, or of the fastest of them, as a multiple of ours."""
        def ratio_of(case):
            times = [r["seconds"] for name, r in case.items() if name.startswith(who) and not rounded(name)]
            return min(times) / case[reference]["seconds"] if times and reference in case else None
        return ratio_of

    def faster(case):
        return best(case)["seconds"] / case[OURS]["seconds"] if best(case) else None

    def beside_plain(case):
        return best(case)["seconds"] / case[MASS]["seconds"] if MASS in case and best(case) else None

    def of_float(who):
        return lambda case: case[OURS]["seconds"] / case[who]["seconds"] if who in case else None

    def decoding(least=0):
        return lambda family, _, dim, keys: family == "decode" and keys >= least and (dim == 128 or not least)

    def forward(dims, lengths):
        return lambda family, _, dim, keys: family == "forward" and dim in dims and lengths[0] <= keys <= lengths[1]

    dims, every = (16, 32, 64, 128), (1, math.inf)
    rows = [
        row("forward, N 1024 to 16384, D 64: of the best other's time", faster, forward((64,), (1024, 16384))),
        row("the same, D 128", faster, forward((128,), (1024, 16384))),
        row("forward, N 16 to 512, D 16 to 128", faster, forward(dims, (16, 512))),
        row("causal", faster, lambda family, *_: family == "causal"),
        row("backward: of PyTorch's", faster, lambda family, *_: family == "backward"),
        row("with the mass of every key, beside the best other without", beside_plain, forward(dims, every)),
        row("with the mass, beside PyTorch's softmax and column sum", over(EXPLICIT, MASS), forward(dims, every)),
        row("decode: of ONNX Runtime's", over("ONNX Runtime"), decoding()),
        row("decode: of PyTorch's SDPA or flash decode", over("PyTorch"), decoding()),
        row("decode: of ggml's", over("ggml"), decoding()),
        row("decode of four queries: of the best other's", faster, lambda family, *_: family == "drafts"),
        row("decode from bf16, 32 heads on 8, from 32768 keys on: of ours from float", of_float("ours bf16"), decoding(32768)),
        row("the same, f16", of_float("ours f16"), decoding(32768)),
        row("the same, int8", of_float("ours int8"), decoding(32768)),
    ]
    return table(["times as fast: least / median / most", *(f"{t} thread{'s' if t > 1 else ''}" for t in threads)], rows)


def write_readme(path, cases):
    with open(path) as file:
        text = file.read()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    with open(path, "w") as file:
        file.write(before + MARKS[0] + readme_table(cases) + "\n" + ranges(cases) + MARKS[1] + after)


def full(cases, family, threads):
    chosen = {key: case for key, case in cases.items() if key[:2] == (family, threads) and OURS in case}
    names = sorted({who for case in chosen.values() for who in case}, key=lambda w: (w != OURS, w != MASS, not w.startswith(OURS), w))
    rows = []
    for (_, _, dim, keys), case in chosen.items():
        ours, peer = case[OURS], best(case)
        rows.append([str(keys), str(dim), str(ours["batch"] * ours["heads"]), f"{100 * limit(ours):.0f} %",
                     ratio(peer["seconds"], ours["seconds"]) if peer else "",
                     *(f"{speed(case[n]):.1f}" if n in case else "" for n in names)])
    return table(["N", "D", "heads", "of the peak, or of reads", "to the best other", *names], rows)


def losses(cases):
    """Where another is faster, and where the evidence costs more than another's plain output."""
    rows = []
    for (family, threads, dim, keys), case in cases.items():
        for who in (OURS, MASS):
            if who in case and best(case) and best(case)["seconds"] < case[who]["seconds"]:
                rows.append([family, str(keys), str(dim), str(threads), who, best(case)["who"],
                             ratio(best(case)["seconds"], case[who]["seconds"])])
    return table(["", "N", "D", "threads", "", "faster", "ratio"], rows) if rows else "None.\n"


def markdown(cases, machine):
    threads = sorted({key[1] for key in cases})
    some = next(iter(cases.values()))[OURS]
    peaks = {t: [row["peak_flops"] / 1e9 for key, case in cases.items() if key[1] == t for row in case.values()] for t in threads}
    text = [
        "# Beside others\n",
        f"{machine}, {some['isa']}, float. Multiply-adds on registers alone, measured with each case: "
        + ", ".join(f"{min(peaks[t]):.0f} to {max(peaks[t]):.0f} GFLOP/s with {t} thread{'s' if t > 1 else ''}" for t in threads)
        + ". Made by `sh bench/peers/run.sh`: the same inputs, in turn, medians; all results agree within 1e-4, "
        f"from f16 within {STORAGES['f16'][1]:g} and from 8 bits within {STORAGES['int8'][1]:g}.\n",
        "Forward and causal: GFLOP/s, 4 N^2 D operations per head (causal: those of the visible part), and the share "
        "of the multiply-adds that the same number of threads can do. Backward: the same with 10 N^2 D. Decode: one "
        "query, or four, of 32 heads, 8 of keys (D 64: of 9 and 3); GB/s of keys and values, and the share of reads of the "
        "same memory.\n",
        summary(cases), ranges(cases), "## Where another is faster\n", losses(cases)]
    if any(rounded(who) for case in cases.values() for who in case if who.startswith(OURS)):
        text += ["## Decode from caches of 16 and 8 bits\n", stored(cases)]
    for family, title in TITLES.items():
        for t in threads:
            if any(key[:2] == (family, t) for key in cases):
                unit = "GB/s" if family in DECODING else "GFLOP/s"
                text += [f"## {title}, {t} thread{'s' if t > 1 else ''}, {unit}\n", full(cases, family, t)]
    return "\n".join(text)


def stored(cases):
    """Decode from caches of 16 and 8 bits, beside the best other; int8 has a scale for 128 numbers, q8_0 for 32."""
    rows = []
    for (family, threads, _, keys), case in cases.items():
        for who, storage in (("ours bf16", "bf16"), ("ours f16", "f16"), ("ours int8", "q8_0")):
            if family != "decode" or who not in case:
                continue
            ours = case[who]
            others = [row for name, row in case.items() if name != who and name.split()[-1] == storage]
            peer, beside = min(others, key=lambda row: row["seconds"], default=None), ["", ""]
            if peer:
                beside = [f"{peer['who']}, {speed(peer):.1f}", ratio(peer["seconds"], ours["seconds"])]
            rows.append([str(keys), str(threads), who, f"{speed(ours):.1f}",
                         ratio(case[OURS]["seconds"], ours["seconds"]), *beside])
    return table(["keys", "threads", "", "GB/s", "faster than from float by", "best other", "faster by"], rows)


STYLES = {OURS: ("#c0392b", "-", 2.4), MASS: ("#c0392b", "--", 1.6), "ONNX Runtime MultiHeadAttention": ("#2471a3", "-", 1.2),
          "ONNX Runtime GroupQueryAttention": ("#2471a3", "--", 1.2), "ONNX Runtime Attention": ("#2471a3", ":", 1.2),
          "OpenVINO SDPA": ("#7d3c98", "-", 1.2), "PyTorch SDPA": ("#d68910", "-", 1.2),
          "PyTorch SDPA backward": ("#d68910", "-", 1.2),
          "PyTorch flash decode": ("#d68910", ":", 1.2),
          "ggml flash_attn_ext": ("#1e8449", "-", 1.2), "ggml flash_attn_ext f16": ("#1e8449", "--", 1.2),
          "ggml flash_attn_ext q8_0": ("#1e8449", ":", 1.2), "ggml mul_mat and soft_max": ("#1e8449", "-.", 1.2),
          "ggml mul_mat and soft_max f16": ("#7dcea0", "-.", 1.2),
          "ours bf16": ("#e59866", "-.", 1.6), "ours f16": ("#c0392b", "-.", 1.6), "ours int8": ("#c0392b", ":", 1.6),
          EXPLICIT: ("#d68910", "--", 1.2)}


def plots(cases, folder):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "peers", "font.size": 9, "axes.spines.top": False,
                                "axes.spines.right": False, "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot
    for threads in sorted({key[1] for key in cases}):
        speed_plot(pyplot, {k: c for k, c in cases.items() if k[1] == threads}, threads, folder)
        roofline(pyplot, {k: c for k, c in cases.items() if k[1] == threads}, threads, folder)


def speed_plot(pyplot, cases, threads, folder):
    panels = sorted({(key[0], key[2]) for key in cases}, key=lambda p: (list(TITLES).index(p[0]), p[1]))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows + 0.7), squeeze=False)
    handles = {}
    for axis, (family, dim) in zip(axes.flat, panels):
        chosen = {key[3]: case for key, case in cases.items() if (key[0], key[2]) == (family, dim)}
        for who, (color, line, width) in STYLES.items():
            points = [(n, speed(case[who])) for n, case in sorted(chosen.items()) if who in case]
            if points:
                handles[who], = axis.plot(*zip(*points), line, color=color, linewidth=width, marker="o", markersize=2.5)
        ceiling = [(n, next(iter(c.values()))) for n, c in sorted(chosen.items())]
        limits = [(row["read_bytes_per_second"] if decode(row) else row["peak_flops"]) / 1e9 for _, row in ceiling]
        handles["the machine's limit"], = axis.plot([n for n, _ in ceiling], limits, color="#555", linewidth=0.9, dashes=(6, 2))
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{TITLES[family]}, D = {dim}")
        axis.set_xlabel("keys" if family in DECODING else "N")
        axis.set_ylabel("GB/s" if family in DECODING else "GFLOP/s")
    for axis in list(axes.flat)[len(panels):]:
        axis.axis("off")
    figure.suptitle(f"{threads} thread{'s' if threads > 1 else ''}", y=0.995)
    legend = min(len(handles), 5)
    figure.tight_layout(rect=(0, (0.1 + 0.18 * math.ceil(len(handles) / legend)) / figure.get_figheight(), 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=legend, frameon=False, fontsize=8)
    figure.savefig(os.path.join(folder, f"speed_{threads}.svg"), metadata={"Date": None})
    pyplot.close(figure)


def roofline(pyplot, cases, threads, folder):
    rows = [row for case in cases.values() for row in case.values()]
    peak = max(row["peak_flops"] for row in rows)
    largest = max(rows, key=lambda row: (decode(row), row["keys"]))  # which no cache holds
    bandwidth = largest["read_bytes_per_second"]
    figure, axis = pyplot.subplots(figsize=(9.5, 4.4))
    xs = sorted([0.5, peak / bandwidth, 2.0**13])
    axis.plot(xs, [min(peak, bandwidth * x) / 1e9 for x in xs], color="#555", linewidth=1.2,
              label=f"limit: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s from memory")
    for who in STYLES:
        points = [(case[who]["flops"] / case[who]["bytes"], case[who]["flops"] / case[who]["seconds"] / 1e9)
                  for case in cases.values() if who in case]
        if points and who not in (MASS, EXPLICIT):
            color, line, _ = STYLES[who]
            axis.scatter(*zip(*points), s=22 if who == OURS else 10, color=color, label=who,
                         marker={"-": "o", "--": "^", ":": "s", "-.": "v"}[line], zorder=3 if who == OURS else 2)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("floating point operations per byte of queries, keys, values and output")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(os.path.join(folder, f"roofline_{threads}.svg"), metadata={"Date": None})
    pyplot.close(figure)


def machine():
    """The processor's name, as the system tells it."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "This machine"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv")
    parser.add_argument("--out", required=True, help="the folder that the tables and plots go to")
    parser.add_argument("--readme", help="a page whose table between the marks is made anew")
    options = parser.parse_args()
    cases = read(options.csv)
    if options.readme:
        write_readme(options.readme, cases)
    with open(os.path.join(options.out, "peers.md"), "w") as file:
        file.write(markdown(cases, machine()))
    plots(cases, options.out)


if __name__ == "__main__":
    main()
