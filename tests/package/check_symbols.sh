#!/bin/sh
# Usage: check_symbols.sh <nm> <objdump> <file of lines "isa object">
# The linker keeps one copy of a function that several objects define weakly, whichever it meets first. What objects
# for different instruction sets share may therefore be compiled to nothing that some of their machines lack. Nothing
# of the kernels may be shared at all, and nothing else of attention_balancer that needs more than plain x86-64.
set -eu
nm=$1 objdump=$2 objects=$3

{
  while read -r isa object; do
    "$nm" --defined-only "$object" | sed -nE "s/^[0-9a-f]* [WVu] (.*)$/symbol $isa \1/p"
    # Functions with an instruction of AVX or later, or of the bit manipulation that comes with AVX2.
    "$objdump" -d --no-show-raw-insn "$object" | awk -v isa="$isa" '
      /^[0-9a-f]+ <.*>:$/ { name = substr($2, 2, length($2) - 3); told = 0; next }
      told { next }
      { sub(/^[ \t]*[0-9a-f]+:[ \t]*/, "") }
      /^v[a-z]|%[yz]mm|^(shlx|shrx|sarx|rorx|andn|mulx|bextr|bzhi|pdep|pext|blsr|blsi|blsmsk)[lq]? |^k[a-z]+[bwdq] / {
        print "beyond", isa, name
        told = 1
      }'
  done <"$objects"
} | awk '
  $1 == "symbol" { defined[$2]++; where[$3] = where[$3] " " $2; times[$3]++ }
  $1 == "beyond" { beyond[$3] = beyond[$3] " " $2 }
  END {
    for (isa in defined) printf "%s: %d weak symbols\n", isa, defined[isa]
    for (symbol in times)
      if (times[symbol] > 1)
        printf "shared by%s%s: %s\n", where[symbol], symbol in beyond ? ", not plain in" beyond[symbol] : "", symbol
  }' | c++filt | awk '
  /^shared by/ { shared++ }
  # The standard library is out of our hands: its functions are counted, not judged.
  /^shared by/ && /attention_balancer::/ && (/, not plain in/ || /::simd::|::score::|::mask::|::softmax::|::isa_/) {
    print
    bad = 1
  }
  !/^shared by/ { print }
  END {
    printf "%d shared\n", shared
    exit bad
  }'
