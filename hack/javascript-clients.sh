#!/usr/bin/env bash
# Prints the directory whose node_modules holds the client library of tests/clients/javascript/package-lock.json, and a Node
# that can run it, after installing them if they are not there. Only packages with the checksums of that file are taken,
# and no script of theirs is run. Progress goes to stderr. Changes nothing of the machine but
# ${XDG_CACHE_HOME:-~/.cache}/towline, and installs npm if it is missing.
#
# A new version: change package.json, then
#   npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
wanted=$here/../tests/clients/javascript
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

mkdir -p "$cache"
exec 9> "$cache/javascript.lock"
flock 9
place=$cache/javascript-$(cat "$wanted/package.json" "$wanted/package-lock.json" | sha256sum | cut -c 1-12)
if [ ! -e "$place/complete" ]; then
  command -v npm >/dev/null || WITH_NPM=yes "$here/install-prerequisites.sh"
  say "installing the JavaScript client library and its Node, once (240 MB unpacked)"
  rm -rf "$place"
  mkdir "$place"
  cp "$wanted/package.json" "$wanted/package-lock.json" "$place/"
  # npm warns that the machine's own Node is too old for the library; the one in the list is not.
  (cd "$place" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
    die "npm cannot install the client library (the reason stands above)"
  touch "$place/complete"
fi
echo "$place"
