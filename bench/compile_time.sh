#!/bin/sh
# What does including this library cost, and one more instantiation of attention?
#
#   sh bench/compile_time.sh [<compiler> [<flags>...]]      default: c++ -O2 -march=native
#
# Seconds of processor time, the least of ROUNDS (default 3) runs in turn, and relative to including xsimd alone.
set -eu
compiler=${1:-c++}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- -O2 -march=native
include=$(cd "$(dirname "$0")/../include" && pwd)
python3 - "$compiler" "$include" "$@" <<'PYTHON'
import os, subprocess, sys, tempfile

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
sources = {
    "xsimd/xsimd.hpp": "#include <xsimd/xsimd.hpp>\n",
    "attention.hpp": "#include <attention_balancer/attention.hpp>\n",
    "balance.hpp": "#include <attention_balancer/balance.hpp>\n",
    "attention_balancer.hpp": "#include <attention_balancer/attention_balancer.hpp>\n",
    "attention.hpp and a call": head + call,
    "the same, and a causal call": head + call + another,
    "the same, and a call with a window and a bias": head + call + another + third,
}
least = {name: float("inf") for name in sources}
with tempfile.TemporaryDirectory() as folder:
    paths = {}
    for i, (name, text) in enumerate(sources.items()):
        paths[name] = f"{folder}/{i}.cpp"
        open(paths[name], "w").write(text)
    for _ in range(int(os.environ.get("ROUNDS", "3"))):
        for name, path in paths.items():
            before = os.times()
            subprocess.run([compiler, "-std=c++20", *flags, "-I" + include, "-c", path, "-o", path + ".o"], check=True)
            after = os.times()
            seconds = after.children_user + after.children_system - before.children_user - before.children_system
            least[name] = min(least[name], seconds)
unit = least["xsimd/xsimd.hpp"]
for name, seconds in least.items():
    print(f"{name:48} {seconds:6.2f} s  {seconds / unit:5.2f} x xsimd")
PYTHON
