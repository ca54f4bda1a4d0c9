#!/usr/bin/env bash
# Checks the workflow files of the forge with zizmor: their form, and what an attacker could make of them. Uses the zizmor on
# PATH, else a prebuilt one from the Python package index. Where neither is to be had, says so loudly.
set -euo pipefail

version=1.32.0
tools=${XDG_CACHE_HOME:-$HOME/.cache}/towline/tools
zizmor=$(command -v zizmor || true)
if [ -z "$zizmor" ]; then
  zizmor=$tools/zizmor-$version
  if [ ! -x "$zizmor" ]; then
    mkdir -p "$tools"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    echo "==> fetching zizmor $version" >&2
    if ! { python3 -m pip download -q --no-deps --disable-pip-version-check -d "$tmp" "zizmor==$version" &&
           unzip -q -o -j "$tmp"/*.whl '*/scripts/zizmor' -d "$tmp"; } >/dev/null 2>&1; then
      echo "!!! LEFT OUT: the workflow files were not checked, because zizmor $version could not be fetched." >&2
      exit 0
    fi
    install -m 755 "$tmp/zizmor" "$zizmor"
  fi
fi

"$zizmor" --quiet --offline --persona=pedantic .github/workflows
