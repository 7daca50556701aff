#!/bin/sh
# Installs the named Debian packages that are missing, as root or with sudo. Usage: sh cmake/debian.sh package...
# On another system it says what is needed and leaves the rest to the user.
set -eu

if ! command -v dpkg-query >/dev/null 2>&1; then
  echo "This is no Debian: make sure that the counterparts of these packages are there: $*"
  exit 0
fi

missing=
for package in "$@"; do
  case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
    "install ok installed") ;;
    *) missing="$missing $package" ;;
  esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
  as_root=
elif command -v sudo >/dev/null 2>&1; then
  as_root=sudo
else
  echo "Missing packages, and neither root nor sudo to install them. As root: apt-get install$missing" >&2
  exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Runs apt-get; shows how far it is, and its whole output only when it fails. A command of another package manager
# that holds the lock is waited for.
apt() {
  { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1 ||
      echo "apt-get failed"; } | tee "$log" |
    awk '/^Setting up/ { if (++n % 20 == 0) print "  " n " packages set up"; fflush() }'
  ! grep -q '^apt-get failed$' "$log" || { cat "$log" >&2; exit 1; }
}

echo "Installing Debian packages:$missing"
apt update
# shellcheck disable=SC2086
apt install --no-install-recommends $missing
