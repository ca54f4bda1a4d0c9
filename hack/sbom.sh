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

rm -rf target/sbom
mkdir -p target/sbom
# It writes beside each manifest of the workspace, and nowhere else; two q leave out its remarks on licences in an old spelling.
"$tool" cyclonedx -qq --target "$target" --describe binaries --format json --spec-version 1.5
for bom in {crates,.}/*/*_bin.cdx.json; do
  mv "$bom" "target/sbom/$(basename "$bom" _bin.cdx.json).cdx.json"
done
find target/sbom -name '*.cdx.json' ! -name 'towline-*' ! -name 'kubectl-*' -delete

# Of all that Cargo.lock could bring, what cargo compiles into this program: an optional dependency that nobody switches on (ring)
# would be told otherwise.
only_compiled() { # CRATE FILE
  local compiled
  compiled=$(cargo tree --locked --package "$1" --target "$target" --edges normal --prefix none --format '{p}' \
    | sed -E 's/^([^ ]+) v([^ ]+).*/\1@\2/' | sort -u | jq -R . | jq -s .)
  jq --argjson compiled "$compiled" '
    .components |= map(select("\(.name)@\(.version)" as $it | $compiled | index($it)))
    | ([.metadata.component."bom-ref"] + [.components[]."bom-ref"]) as $kept
    | .dependencies |= (map(select(.ref as $it | $kept | index($it)))
        | map(if .dependsOn then .dependsOn |= map(select(. as $it | $kept | index($it))) else . end))' "$2" > "$2.part"
  mv "$2.part" "$2"
}
only_compiled hub target/sbom/towline-hub.cdx.json
only_compiled agent target/sbom/towline-agent.cdx.json
only_compiled cli target/sbom/kubectl-towline.cdx.json
for program in towline-hub towline-agent kubectl-towline; do
  bom=target/sbom/$program.cdx.json
  [ -s "$bom" ] || { echo "$bom was not written" >&2; exit 1; }
  echo "$bom: $(jq '.components | length' "$bom") components"
done
