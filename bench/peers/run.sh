#!/bin/sh
# Measures this library beside ONNX Runtime, OpenVINO and PyTorch, in turn, on the same inputs. Installs what is missing:
# Debian packages, and the others as wheels of PyPI, pinned by version and hash, into build/peers (5 GB, of which PyTorch,
# whose wheel brings CUDA along, is nine tenths). Writes build/peers/peers.csv, peers.md, speed_*.svg and roofline_*.svg.
# Usage: sh bench/peers/run.sh [--without-torch] [--quick] [--threads N|all ...] [--select REGEX]
#   --quick     9 cases in about a minute, instead of all in about ten
#   --threads   default: 1 all
#   --select    only the cases whose names match, as in '^forward/N:1024/D:64'; the results of others stay
set -eu
cd "$(dirname "$0")/../.."

torch=yes
for argument in "$@"; do
  shift
  if [ "$argument" = --without-torch ]; then torch=no; else set -- "$@" "$argument"; fi
done

sh cmake/debian.sh g++ cmake ninja-build libxsimd-dev libeigen3-dev libbenchmark-dev python3-venv python3-dev \
  ca-certificates

# A folder that is configured already keeps its tests and examples.
[ -f build/CMakeCache.txt ] || rest="-DATTENTION_BALANCER_TESTS=OFF -DATTENTION_BALANCER_EXAMPLES=OFF"
# shellcheck disable=SC2086
cmake --preset release -DATTENTION_BALANCER_BENCH=ON ${rest-}
cmake --build --preset release --target bench_peers

out=build/peers
mkdir -p "$out"
[ -x "$out/venv/bin/python" ] || python3 -m venv "$out/venv"
# install <file of requirements>: unless that very file is installed already
install() {
  stamp=$out/venv/$(basename "$1")
  cmp -s "$1" "$stamp" && return 0
  echo "Installing $1..."
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$out/venv/bin/python" -m pip install --quiet --retries 2 --no-deps \
    --only-binary :all: --require-hashes -r "$1" || return 1
  cp "$1" "$stamp"
}
install bench/peers/requirements.txt
if [ "$torch" = yes ]; then
  install bench/peers/requirements-torch.txt || echo "PyTorch is left out: it could not be installed"
fi

"$out/venv/bin/python" bench/peers/peers.py --ours build/bench/ours.so --csv "$out/peers.csv" "$@"
"$out/venv/bin/python" bench/peers/report.py "$out/peers.csv" --out "$out"
awk '/^## Forward, /{exit} {print}' "$out/peers.md"
echo "All of it: $out/peers.md, $out/speed_1.svg, ..."
