#!/bin/sh
# What does including this library cost, and one more instantiation of attention?
#
#   sh bench/compile_time.sh [<compiler> [<flags>...]]      default: c++ -O2 -march=native
#
# Seconds of processor time, the least and the median of ROUNDS (default 5) runs in turn. attention.hpp is to cost at most
# 1.6 times what including xsimd alone does, balance.hpp is printed beside the standard headers that it includes, and one
# more call of attention, with other policies, is the difference to the line before.
set -eu
compiler=${1:-c++}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- -O2 -march=native
include=$(cd "$(dirname "$0")/../include" && pwd)
command -v python3 >/dev/null || { echo "python3 is missing"; exit 1; }
python3 - "$compiler" "$include" "$@" <<'PYTHON'
import os, re, statistics, subprocess, sys, tempfile

compiler, include, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
call = """
using V = ab::TensorView<float>;
void f(V q, V k, V v, V out, ab::Workspace& w) { ab::attention(q, k, v, out, w); }
"""
another = """
void g(V q, V k, V v, V out, ab::Workspace& w) { ab::attention(q, k, v, out, w, ab::mask::Causal{}); }
"""
third = """
void h(V q, V k, V v, V out, ab::Workspace& w) {
  ab::attention(q, k, v, out, w, ab::mask::Window{9, 0}, ab::score::Bias(out));
}
"""
head = "#include <attention_balancer/attention.hpp>\nnamespace ab = attention_balancer;\n"
os.environ["CCACHE_DISABLE"] = "1"  # where the compiler is a link to it


def run(arguments):
    try:
        done = subprocess.run([compiler, "-std=c++20", *flags, "-I" + include, *arguments], capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{compiler}: {error.strerror}")
    if done.returncode:
        sys.exit(f"{compiler} failed:\n{done.stderr}")
    return done.stdout


def included(header):
    """One line for including it."""
    return f"#include <{header}>\n"


with tempfile.TemporaryDirectory() as folder:

    def standard_headers(header):
        """Includes what the header and our own below it include of the standard library."""
        path = f"{folder}/probe.cpp"
        open(path, "w").write(included(header))
        ours = re.findall(r"\S*attention_balancer/\S+\.hpp", run(["-MM", path]))
        names = {name for each in ours for name in re.findall(r"^#include <(\w+)>", open(each).read(), re.M)}
        return "".join(map(included, sorted(names)))

    sources = {
        "xsimd": included("xsimd/xsimd.hpp"),
        "attention.hpp": included("attention_balancer/attention.hpp"),
        "attention_balancer.hpp": included("attention_balancer/attention_balancer.hpp"),
        "the standard headers of balance.hpp": standard_headers("attention_balancer/balance.hpp"),
        "balance.hpp": included("attention_balancer/balance.hpp"),
        "attention.hpp and a call": head + call,
        "the same, and a causal call": head + call + another,
        "the same, and a call with a window and a bias": head + call + another + third,
    }
    seconds = {name: [] for name in sources}
    for i, text in enumerate(sources.values()):
        open(f"{folder}/{i}.cpp", "w").write(text)
    for _ in range(int(os.environ.get("ROUNDS", "5"))):
        for i, name in enumerate(sources):
            before = os.times()
            run(["-c", f"{folder}/{i}.cpp", "-o", f"{folder}/object"])
            after = os.times()
            seconds[name].append(after.children_user + after.children_system - before.children_user
                                 - before.children_system)

least = {name: min(each) for name, each in seconds.items()}
print(f"{'':46} {'least':>7} {'median':>8}")
beside = {"attention.hpp": "xsimd", "attention_balancer.hpp": "xsimd",
          "balance.hpp": "the standard headers of balance.hpp"}
earlier = None
for name, each in least.items():
    note = ""
    if name in beside:
        note = f"{each / least[beside[name]]:5.2f} x {beside[name].removesuffix(' of balance.hpp')}"
    elif name.startswith("the same"):
        note = f"{each - earlier:+5.2f} s"
    print(f"{name:46} {each:5.2f} s {statistics.median(seconds[name]):6.2f} s  {note}".rstrip())
    earlier = each
PYTHON
