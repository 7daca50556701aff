#!/bin/sh
# Builds and runs the tests with g++ for this machine. Installs the Debian packages that are missing; run again, it
# builds what has changed. Usage: sh tests/run.sh [argument for ctest]...
set -eu
cd "$(dirname "$0")/.."

sh cmake/debian.sh g++ cmake ninja-build binutils libxsimd-dev libeigen3-dev catch2 librapidcheck-dev \
  nlohmann-json3-dev libcli11-dev libutf8proc-dev libstb-dev libtbb-dev

# The benchmarks stay as they are in a folder that is configured already.
[ -f build/CMakeCache.txt ] || bench=-DATTENTION_BALANCER_BENCH=OFF
cmake --preset release -DATTENTION_BALANCER_TESTS=ON -DATTENTION_BALANCER_EXAMPLES=ON ${bench-}
cmake --build --preset release
ctest --preset release -j "$(nproc)" "$@"
