#!/bin/sh
# Usage: check_refused.sh <compiler> <objcopy> <readelf> <cmake> <combine_kernels.cmake> <folder to work in>
# Kernels that initialise something before main would do so on machines that lack their instruction set: refused, with
# the reason. The same file without that passes.
set -eu
compiler=$1 objcopy=$2 readelf=$3 cmake=$4 script=$5 work=$6

mkdir -p "$work"
combine() {
  "$compiler" -c "$work/$1.cpp" -o "$work/$1.o"
  "$cmake" "-DCOMPILER=$compiler" "-DOBJCOPY=$objcopy" "-DREADELF=$readelf" -DTABLE=table "-DOUTPUT=$work/$1_combined.o" \
    -P "$script" -- "$work/$1.o"
}
echo 'int read(); extern "C" int table() { static int x = read(); return x; }' >"$work/later.cpp"
echo 'int read(); int x = read(); extern "C" int table() { return x; }' >"$work/before.cpp"
combine later
if combine before 2>"$work/said"; then
  echo "an initialiser that runs before main is not refused"
  exit 1
fi
cat "$work/said"
grep -q "_GLOBAL__sub_I_" "$work/said"
[ ! -e "$work/before_combined.o" ]
