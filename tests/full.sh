#!/bin/sh
# What must hold beyond tests/run.sh: clang, every instruction set that this machine can run, 64-bit Arm under qemu, a
# newer xsimd, and the sanitizers. Each is a preset with a build folder of its own; the logs are build-<preset>/log.txt.
# Usage: sh tests/full.sh [preset]...   (without any: those that a change needs; clang-release takes as long as they do)
#        sh tests/full.sh --install     (only the Debian packages that they need)
set -eu
cd "$(dirname "$0")/.."

sh cmake/debian.sh g++ clang cmake ninja-build binutils ccache libxsimd-dev libeigen3-dev catch2 librapidcheck-dev \
  libbenchmark-dev nlohmann-json3-dev libcli11-dev libutf8proc-dev libstb-dev libomp-dev libtbb-dev \
  g++-aarch64-linux-gnu qemu-user
[ "${1-}" != --install ] || exit 0

has() {
  for flag in "$@"; do grep -qw "$flag" /proc/cpuinfo || return 1; done
}

# Headers alone, beside those of this system: an installed package would displace its xsimd, and brings a CMake config
# that asks for xtl.
fetch_xsimd() {
  headers=build-xsimd-13/debian/usr/include
  mkdir -p build-xsimd-13
  sh cmake/from_debian.sh x/xsimd/libxsimd-dev_13.2.0-1_amd64.deb \
    60878acfc02bfca76e8c31d53a1b9fdff490c319e53f620f4327c9786eaf631f build-xsimd-13/xsimd.deb >/dev/null 2>&1 &&
    dpkg-deb -x build-xsimd-13/xsimd.deb build-xsimd-13/debian &&
    ln -sfn /usr/include/catch2 "$headers/catch2" && ln -sfn /usr/include/eigen3 "$headers/eigen3"
}

# 0 if this machine can run what the preset builds, by itself or emulated; otherwise says what it lacks.
runs_here() {
  emulated=
  case $1 in
    xsimd-13) fetch_xsimd || { echo "$1: skipped, it could not be downloaded"; return 1; } ;;
    *avx512) has avx512f avx512bw avx512cd avx512dq avx512vl || emulated=yes ;;
    *avx2) has avx2 fma bmi2 || { echo "$1: skipped, no AVX2 here"; return 1; } ;;
    *sse2) has sse2 || { echo "$1: skipped, no SSE2 here"; return 1; } ;;
  esac
}

# Builds one preset from nothing and tests it; says how it went.
check() {
  preset=$1
  mkdir -p "build-$preset"
  log=build-$preset/log.txt
  echo "$preset: building..."
  # shellcheck disable=SC2086
  if [ -n "$emulated" ]; then
    sh tests/emulate_avx512.sh >"$log" 2>&1 || true
  elif cmake --preset "$preset" $options >"$log" 2>&1 &&
    cmake --build --preset "$preset" -j "$jobs" >>"$log" 2>&1; then
    ctest --preset "$preset" -j "$jobs" >>"$log" 2>&1 || true
  fi
  # ctest closes with "97% tests passed, 3 tests failed out of 100".
  bad=$(sed -n 's/^[0-9]*% tests passed, \([0-9]*\) tests failed out of [0-9]*$/\1/p' "$log")
  all=$(sed -n 's/^[0-9]*% tests passed, [0-9]* tests failed out of \([0-9]*\)$/\1/p' "$log")
  # Where it did not come to tests, that is one failure.
  if [ -z "$all" ]; then
    bad=1 all=1
  fi
  [ "$bad" -eq 0 ] || tail -n 60 "$log"
  echo "$preset: $((all - bad)) passed, $bad failed, after $(($(date +%s) - start)) s"
}

if [ "${1-}" = --check ]; then
  preset=$2 options=
  case $preset in
    asan-ubsan) options=${sanitized-} ;;
    *neon) unset ATTENTION_BALANCER_TEST_MAIN ;;
  esac
  if runs_here "$preset"; then check "$preset"; fi
  exit 0
fi

# clang and tests/run.sh take all that this machine has: AVX-512 where it is there, so avx512 adds nothing to them,
# clang-avx2 little, and avx2 nothing where AVX2 is all. The longest first: two are built and tested at a time, so that
# one keeps busy the processors that the last files and tests of the other leave idle.
if [ $# -eq 0 ]; then
  set -- asan-ubsan clang-neon sse2 clang scalar tsan
  if has avx512f; then set -- "$@" avx2; fi
  # The newer xsimd costs nothing where the sanitizers look at it: they compile nearly the same files.
  if runs_here xsimd-13; then
    export sanitized=-DATTENTION_BALANCER_HOST_HEADERS=build-xsimd-13/debian/usr/include
  fi
fi
# Catch2 takes as long to compile as the tests of a folder: once for all that run here by themselves.
mkdir -p build-main
g++ -std=c++20 -O0 -Iinclude -Itests -DCATCH_CONFIG_FAST_COMPILE -c tests/support/main.cpp -o build-main/main.o
export ATTENTION_BALANCER_TEST_MAIN="$PWD/build-main/main.o"
jobs=$(nproc) start=$(date +%s)
[ $# -eq 1 ] || jobs=$(((jobs + 1) / 2))
export jobs start
{ printf '%s\n' "$@" | xargs -P 2 -n 1 sh tests/full.sh --check || echo "others: 0 passed, 1 failed"; } |
  tee build-main/verdicts.txt

awk '
  /^[^ ]+: [0-9]+ passed, / { passed += $2; failed += $4 }
  END { print passed " passed, " failed " failed"; exit failed > 0 }
' build-main/verdicts.txt
