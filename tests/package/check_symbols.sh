#!/bin/sh
# Usage: check_symbols.sh <nm> <objdump> <file of lines "isa combined-object object...">
# The linker keeps one copy of a function that several objects define weakly, whichever it meets first: compiled, perhaps,
# to what the machine lacks. So what the kernels of several instruction sets have in common must be no function and no
# data but the names of types; and the plainest of them must hold no instruction that its machine lacks.
set -eu
nm=$1 objdump=$2 objects=$3

# Symbols that others can see or that are merged with those of others: all but local (lower case) and undefined ones.
visible() { "$nm" --defined-only "$@" | awk 'NF == 3 && ($2 ~ /[A-Z]/ || $2 ~ /[uvw]/) {print $3}' | sort -u; }

while read -r isa combined parts; do
  # shellcheck disable=SC2086
  visible $parts | sed "s/^/parts $isa /"
  visible "$combined" | sed "s/^/combined $isa /"
  "$objdump" -d --no-show-raw-insn "$combined" | awk -v isa="$isa" '
    /^[0-9a-f]+ <.*>:$/ { name = $2; next }
    { sub(/^[ \t]*[0-9a-f]+:[ \t]*/, "") }
    /^v[a-z]|%[yz]mm|^(shlx|shrx|sarx|rorx|andn|mulx|bextr|bzhi|pdep|pext|blsr|blsi|blsmsk)[lq]? |^k[a-z]+[bwdq] / {
      avx++; if (isa == "sse2") print "beyond", isa, name, $0 }
    /%zmm/ { zmm++; if (isa == "avx2") print "beyond", isa, name, $0 }
    END { print "count", isa, avx + 0, zmm + 0 }'
done <"$objects" | awk '
  $1 == "parts" { if ($3 in first && first[$3] != $2) shared_parts++; first[$3] = $2 }
  $1 == "combined" && $3 ~ /^_ZT[IS]/ { types++; next }
  $1 == "combined" { seen[$2]++; if ($3 != "attention_balancer_table_kernels_" $2) { print "visible in " $2 ": " $3; bad = 1 } }
  $1 == "beyond" { print; bad = 1 }
  $1 == "count" { print $2 ": " $3 " instructions of AVX or later, " $4 " on 512 bits"; avx[$2] = $3; zmm[$2] = $4; isas++ }
  END {
    # Without these, the checks above would have looked at nothing.
    print shared_parts + 0 " symbols shared before they were combined"
    if (isas != 4 || shared_parts < 20 || avx["avx2"] < 100 || zmm["avx512"] < 100 || types == 0) { print "looked at nothing"; bad = 1 }
    for (isa in avx) if (seen[isa] != 1) { print isa " has no table"; bad = 1 }
    exit bad
  }'
