#!/bin/sh
# What must hold beyond tests/run.sh: clang, every instruction set that this machine can run, 64-bit Arm under qemu, a
# newer xsimd, and the sanitizers. Each is a preset with a build folder of its own; the logs are build-<preset>/log.txt.
# Usage: sh tests/full.sh [preset]...   (without any: those that a change needs; clang-release takes as long as they do)
set -eu
cd "$(dirname "$0")/.."

sh cmake/debian.sh g++ clang cmake ninja-build binutils ccache libxsimd-dev libeigen3-dev catch2 librapidcheck-dev \
  libbenchmark-dev nlohmann-json3-dev libcli11-dev libutf8proc-dev libstb-dev libomp-dev libtbb-dev \
  g++-aarch64-linux-gnu qemu-user

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

passed=0 failed=0 tested=
# Waits for the tests of the preset that was built last, and counts them, or one failure where it did not come to tests.
verdict() {
  [ -n "$tested" ] || return 0
  wait
  log=build-$tested/log.txt
  # ctest closes with "97% tests passed, 3 tests failed out of 100".
  bad=$(sed -n 's/^[0-9]*% tests passed, \([0-9]*\) tests failed out of [0-9]*$/\1/p' "$log")
  all=$(sed -n 's/^[0-9]*% tests passed, [0-9]* tests failed out of \([0-9]*\)$/\1/p' "$log")
  if [ -z "$all" ]; then
    bad=1 all=1
  fi
  passed=$((passed + all - bad)) failed=$((failed + bad))
  echo "$tested: $((all - bad)) passed, $bad failed, after $(($(date +%s) - start)) s"
  [ "$bad" -eq 0 ] || tail -n 60 "$log"
  tested=
}

# Builds one preset from nothing, while the tests of the one before take what the compilers leave of the machine; then
# starts its own tests.
check() {
  preset=$1
  mkdir -p "build-$preset"
  log=build-$preset/log.txt
  echo "$preset: building..."
  built=
  if [ -n "$emulated" ]; then
    sh tests/emulate_avx512.sh >"$log" 2>&1 || true
  # shellcheck disable=SC2086
  elif cmake --preset "$preset" ${options-} >"$log" 2>&1 && cmake --build --preset "$preset" >>"$log" 2>&1; then
    built=yes
  fi
  verdict
  tested=$preset
  if [ -n "$built" ]; then
    ctest --preset "$preset" -j "$(nproc)" >>"build-$preset/log.txt" 2>&1 &
  fi
}

# clang and tests/run.sh take all that this machine has: AVX-512 where it is there, so avx512 adds nothing to them,
# clang-avx2 little, and avx2 nothing where AVX2 is all. The shortest first, but for those whose last tests leave
# processors idle: the next are built meanwhile.
if [ $# -eq 0 ]; then
  set -- tsan scalar neon asan-ubsan sse2 clang
  if has avx512f; then set -- avx2 "$@"; fi
  # The newer xsimd costs nothing where the sanitizers look at it: they compile nearly the same files.
  if runs_here xsimd-13; then sanitized=-DATTENTION_BALANCER_HOST_HEADERS=build-xsimd-13/debian/usr/include; fi
fi
start=$(date +%s)
for preset in "$@"; do
  options=
  [ "$preset" != asan-ubsan ] || options=${sanitized-}
  if runs_here "$preset"; then check "$preset"; fi
done

verdict

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
