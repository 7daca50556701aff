#!/bin/sh
# Usage: check.sh <page.md> <folder to work in> <compiler> <file of compiler flags> <header that fragments are given>
# Each ```cpp block that has a main() is a program: it must compile without a warning and run. If a ```text block
# is the next block after it, the program must print exactly that. All other ```cpp blocks are fragments: each must
# compile as the body of a function.
set -eu
page=$1 work=$2 compiler=$3 flags=$4 given=$5

rm -rf "$work"
mkdir -p "$work"
awk -v work="$work" -v given="$given" '
  function flush() {
    if (kind == "cpp" && body ~ /(^|\n)int main\(/) {
      program++
      printf "%s", body > (work "/" program ".cpp")
      close(work "/" program ".cpp")
      pending = program
    } else {
      if (kind == "cpp") {
        file = work "/" ++fragment ".fragment.cpp"
        printf "#include \"%s\"\nvoid fragment();\nvoid fragment() {\nusing namespace given;\n%s}\n", given, body > file
        close(file)
      }
      if (kind == "text" && pending) {
        printf "%s", body > (work "/" pending ".expected")
        close(work "/" pending ".expected")
      }
      pending = 0
    }
  }
  /^```/ {
    if (inside) { inside = 0; flush() }
    else { inside = 1; kind = substr($0, 4); sub(/[ \t].*/, "", kind); body = "" }
    next
  }
  inside { body = body $0 "\n" }
  END { if (inside) { print "a block is not closed"; exit 1 } }
' "$page"

# The flags are one per line and hold no spaces beyond those of paths.
compile() {
  (IFS='
'
   # shellcheck disable=SC2046
   exec "$compiler" $(cat "$flags") "$@")
}

count=0 failed=0
for source in "$work"/*.cpp; do
  [ -f "$source" ] || break
  count=$((count + 1))
  program=${source%.cpp}
  case $source in
    *.fragment.cpp)
      echo "Fragment $(basename "$source") of $(basename "$page")"
      compile -fopenmp -fsyntax-only "$source" || failed=$((failed + 1))
      continue
      ;;
  esac
  echo "Program $(basename "$source") of $(basename "$page"):"
  if ! compile -O2 "$source" -o "$program"; then
    failed=$((failed + 1))
    continue
  fi
  if ! (cd "$work" && "$program" >"$program.printed"); then
    echo "it failed when it ran"
    failed=$((failed + 1))
    continue
  fi
  cat "$program.printed"
  if [ -f "$program.expected" ] && ! diff "$program.expected" "$program.printed"; then
    echo "it prints (>) something else than the page shows (<)"
    failed=$((failed + 1))
  fi
done
echo "$count programs and fragments, $failed failed"
[ "$failed" -eq 0 ]
