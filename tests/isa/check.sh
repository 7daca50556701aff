#!/bin/sh
# Usage: check.sh <isa or any> <objdump> <probe> [emulator...]
# Runs the probe, compares the instruction set that it names, and counts the multiply-adds in the functions of that
# set's namespace. Exit status 77 when this machine cannot run it.
set -eu
expected=$1 objdump=$2 probe=$3
shift 3

status=0
said=$("$@" "$probe") || status=$?
echo "$said"
[ "$status" -ne 77 ] || exit 77
[ "$status" -eq 0 ] || { echo "the probe failed"; exit 1; }
isa=${said%% *}
if [ "$expected" != any ] && [ "$expected" != "$isa" ]; then
  echo "the probe ran $isa, but was built for $expected"
  exit 1
fi

# What a multiply-add on full registers looks like, and what must not appear: wider registers, other encodings.
case $isa in
  avx512 | avx512bf16 | avx512fp16) want='vfn?m(add|sub)[0-9]+p[sd] .*%zmm' never='no such instruction' ;;
  avx2) want='vfn?m(add|sub)[0-9]+p[sd] .*%ymm' never='%zmm|%[xy]mm(1[6-9]|2[0-9]|3[01])' ;;
  sse2) want='mulp[sd] .*%xmm' never='%[yz]mm|^v[a-z0-9]+ .*%xmm' ;;
  neon64) want='fmla[[:space:]]+v[0-9]+\.(4s|2d)' never='no such instruction' ;;
  scalar) want='(mul|add)[sp][sd] .*%xmm|fmadd|fmul' never='no such instruction' ;;
  *) echo "unknown instruction set $isa"; exit 1 ;;
esac

"$objdump" -d -C --no-show-raw-insn "$probe" | awk -v isa="isa_$isa" -v want="$want" -v never="$never" '
  /^[0-9a-f]+ <.*>:$/ {
    ours = index($0, "::" isa "::") > 0
    if (!ours && match($0, /::isa_[a-z0-9]+::/)) { print "a function of another instruction set: " $0; bad = 1 }
    if (ours) functions++
    name = $0
    next
  }
  ours {
    sub(/^[ \t]*[0-9a-f]+:[ \t]*/, "")
    gsub(/\t/, " ")
    if ($0 ~ want) found++
    if ($0 ~ never) { if (!wrong++) { print "in " name; print "  " $0 } }
  }
  END {
    printf "%d functions of %s, %d multiply-adds\n", functions, isa, found
    if (found < 48) { print "fewer than 48: the kernels are not made of them"; bad = 1 }
    if (wrong) { print wrong " instructions that this set does not have"; bad = 1 }
    exit bad
  }'
