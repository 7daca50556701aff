#!/bin/sh
# Measures this library beside ONNX Runtime, OpenVINO, PyTorch and ggml, in turn, on the same inputs. Installs what is
# missing: Debian packages, and the others from PyPI, pinned by version and hash, into build/peers: wheels (5 GB, of
# which PyTorch, whose wheel brings CUDA along, is nine tenths), and the sources of ggml (77 MB), which are compiled
# there for this machine in a minute or two. Writes build/peers/peers.csv, peers.md, speed_*.svg and roofline_*.svg.
# Usage: sh bench/peers/run.sh [--without-torch] [--without-ggml] [--quick] [--threads N|all ...] [--select REGEX]
#   --quick     12 cases in about a minute, instead of all in about fifteen
#   --threads   default: 1 all
#   --select    only the cases whose names match, as in '^forward/N:1024/D:64'; the results of others stay
set -eu
cd "$(dirname "$0")/../.."

torch=yes ggml=yes
for argument in "$@"; do
  shift
  case $argument in
    --without-torch) torch=no ;;
    --without-ggml) ggml=no ;;
    *) set -- "$@" "$argument" ;;
  esac
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
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$out/venv/bin/python" -m pip "$@"; }
# install <file of requirements>: unless that very file is installed already
install() {
  stamp=$out/venv/$(basename "$1")
  cmp -s "$1" "$stamp" && return 0
  echo "Installing $1..."
  pip install --quiet --retries 2 --no-deps --only-binary :all: --require-hashes -r "$1" || return 1
  cp "$1" "$stamp"
}
install bench/peers/requirements.txt
if [ "$torch" = yes ]; then
  install bench/peers/requirements-torch.txt || echo "PyTorch is left out: it could not be installed"
fi

# A wheel of ggml would be compiled for the least of all machines; its sources come in the archive of llama-cpp-python.
# pip asks even an archive that it only downloads for its metadata, and that takes requirements-sdist.txt.
fetch_ggml() {
  cmp -s bench/peers/requirements-ggml.txt "$out/ggml/requirements.txt" && return 0
  rm -rf "$out/ggml"
  mkdir -p "$out/ggml/sources"
  install bench/peers/requirements-sdist.txt &&
    pip download --quiet --retries 2 --no-deps --no-binary :all: --no-build-isolation --require-hashes \
      -r bench/peers/requirements-ggml.txt -d "$out/ggml" &&
    tar xzf "$out"/ggml/*.tar.gz -C "$out/ggml/sources" --strip-components 4 --wildcards '*/vendor/llama.cpp/ggml' &&
    rm "$out"/ggml/*.tar.gz &&
    cp bench/peers/requirements-ggml.txt "$out/ggml/requirements.txt"
}
build_ggml() {
  cmake -S bench/peers/ggml -B "$out/ggml/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    "-DGGML_SOURCES=$PWD/$out/ggml/sources" && cmake --build "$out/ggml/build"
}
if [ "$ggml" = yes ]; then
  [ -f "$out/ggml/build/ggml.so" ] || echo "Downloading and compiling ggml..."
  if { fetch_ggml && build_ggml; } >"$out/ggml-log.txt" 2>&1; then
    set -- --ggml "$out/ggml/build/ggml.so" "$@"
  else
    echo "ggml is left out: it could not be downloaded or compiled, see $out/ggml-log.txt"
  fi
fi

"$out/venv/bin/python" bench/peers/peers.py --ours build/bench/ours.so --csv "$out/peers.csv" "$@"
"$out/venv/bin/python" bench/peers/report.py "$out/peers.csv" --out "$out"
awk '/^## Forward, /{exit} {print}' "$out/peers.md"
echo "All of it: $out/peers.md, $out/speed_1.svg, ..."
