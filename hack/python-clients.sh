#!/usr/bin/env bash
# Prints the Python that has the client libraries of tests/clients/python/requirements.txt, in a virtual environment of
# their own that is made first if it is not there. Only wheels with the checksums of that file are taken. Progress goes to
# stderr. Changes nothing of the machine but ${XDG_CACHE_HOME:-~/.cache}/towline, and installs python3-venv if it is missing.
#
# A new version: change requirements.in, then
#   pip-compile --generate-hashes --no-header --no-annotate --no-emit-index-url --strip-extras requirements.in
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wanted=$here/../tests/clients/python/requirements.txt
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

mkdir -p "$cache"
exec 9> "$cache/python.lock"
flock 9
# Another list, or another Python, is another environment.
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
place=$cache/python-$python-$(sha256sum < "$wanted" | cut -c 1-12)
if [ ! -e "$place/complete" ]; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || WITH_VENV=yes "$here/install-prerequisites.sh"
  say "installing Python client libraries, once: $(grep -c == "$wanted") packages"
  rm -rf "$place"
  # Where a virtual environment stands is written into its files: it is made in place, and called complete at the end.
  python3 -m venv "$place" || die "python3 cannot make a virtual environment (the reason stands above)"
  "$place/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --only-binary=:all: \
    --require-hashes -r "$wanted" >&2 || die "pip cannot install the client libraries (the reason stands above)"
  touch "$place/complete"
fi
echo "$place/bin/python"
