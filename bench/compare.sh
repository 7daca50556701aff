#!/bin/sh
# Before and after: two builds of one benchmark, in turn, on the same machine in the same minutes.
#
#   sh bench/compare.sh <build A> <build B> <benchmark> [<filter>] [<rounds>]
#
# for example, with the commit to compare to checked out and built in another folder:
#
#   sh bench/compare.sh ../before/build build attention 'forward<float>.*N:1024' 5
#
# Each build runs once per round, A first in one round and B first in the next. Printed per benchmark: the median of
# the share of the FMA peak (of_peak, or the time where a benchmark reports none) in A and in B, and B relative to A in
# speed. The shares are relative to the peak that each run measured itself, so a clock that drifts does not matter.
set -eu
[ $# -ge 3 ] || { sed -n '2,12p' "$0" | sed 's/^# \{0,1\}//'; exit 2; }
a=$1/bench/bench_$3 b=$2/bench/bench_$3 filter=${4:-.} rounds=${5:-5}
for program in "$a" "$b"; do
  [ -x "$program" ] || { echo "no such benchmark: $program" >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
run() {
  "$1" "--benchmark_filter=$filter" --benchmark_format=json > "$folder/$2.$3.json" 2> "$folder/log" &&
    [ -s "$folder/$2.$3.json" ] || { cat "$folder/log" >&2; echo "$1 ran nothing" >&2; exit 1; }
}
round=1
while [ "$round" -le "$rounds" ]; do
  if [ $((round % 2)) = 1 ]; then run "$a" a $round; run "$b" b $round; else run "$b" b $round; run "$a" a $round; fi
  round=$((round + 1))
done
python3 - "$folder" <<'PYTHON'
import glob, json, statistics, sys

def speeds(which):
    found = {}
    for path in sorted(glob.glob(f"{sys.argv[1]}/{which}.*.json")):
        for run in json.load(open(path))["benchmarks"]:
            if run.get("error_occurred"):
                sys.exit(f"{run['name']}: {run['error_message']}")
            speed = run["of_peak"] if "of_peak" in run else 1 / run["real_time"]
            found.setdefault(run["name"], []).append(speed)
    return found

a, b = speeds("a"), speeds("b")
print(f"{'':60} {'A':>10} {'B':>10} {'B / A':>7}")
for name in {**a, **b}:
    if name not in a or name not in b:
        print(f"{name:60} only in {'A' if name in a else 'B'}")
    else:
        x, y = statistics.median(a[name]), statistics.median(b[name])
        print(f"{name:60} {x:10.4g} {y:10.4g} {y / x:7.3f}")
PYTHON
