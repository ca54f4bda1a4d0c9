#!/usr/bin/env bash
# Writes a CycloneDX bill of materials for each program of the image: target/sbom/PROGRAM.cdx.json. It lists the crates
# that are compiled into that program for its target, with versions, licences, package URLs and checksums.
# Uses the cargo-cyclonedx on PATH, else builds it once (about 4 minutes on 2 cores).
set -euo pipefail

version=0.5.9
target=${1:-$(uname -m)-unknown-linux-gnu}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/towline/tools
tool=$(command -v cargo-cyclonedx || true)
if [ -z "$tool" ]; then
  tool=$tools/cargo-cyclonedx-$version
  if [ ! -x "$tool" ]; then
    mkdir -p "$tools"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    echo "==> building cargo-cyclonedx $version" >&2
    cargo install --quiet --locked --root "$tmp" "cargo-cyclonedx@$version"
    install -m 755 "$tmp/bin/cargo-cyclonedx" "$tool"
  fi
fi

mkdir -p target/sbom
for crate in hub agent cli; do
  # It writes beside the manifest, and nowhere else.
  "$tool" cyclonedx --quiet --manifest-path "crates/$crate/Cargo.toml" --target "$target" --describe binaries --format json \
    --spec-version 1.5 --license-strict
done
for bom in crates/{hub,agent,cli}/*.cdx.json; do
  program=$(basename "$bom" | sed -E 's/_bin\.cdx\.json$/.cdx.json/')
  mv "$bom" "target/sbom/$program"
done
for program in towline-hub towline-agent kubectl-towline; do
  bom=target/sbom/$program.cdx.json
  [ -s "$bom" ] || { echo "$bom was not written" >&2; exit 1; }
  echo "$bom: $(jq '.components | length' "$bom") components"
done
