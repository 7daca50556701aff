#!/bin/sh
# Downloads a file from the archive that this machine installs its packages from, unless it is there already.
# Usage: sh cmake/from_debian.sh <path below pool/main> <SHA256> <file>
set -eu
archive=$(sed -n 's/^URIs: *//p; s/^deb .*\(https\{0,1\}:[^ ]*\).*/\1/p' /etc/apt/sources.list /etc/apt/sources.list.d/* \
  2>/dev/null | head -n 1)
cmake "-DURL=$archive/pool/main/$1" "-DSHA256=$2" "-DFILE=$3" -P "$(dirname "$0")/download.cmake"
