#!/usr/bin/env bash
# Gathers what a release consists of in target/publish/files, with checksums, and its notes beside it, from an image that
# `make image` has built. usage: release.sh STATIC_DIR IMAGE
# With BASE_URL and HOMEPAGE in the environment it writes the krew manifest, too, which needs archives of all platforms there.
set -euo pipefail

[ $# = 2 ] || { sed -n 2,4p "$0" >&2; exit 64; }
binaries=$1 image=$2
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
case $(uname -m) in
x86_64) platform=linux_amd64 ;;
aarch64) platform=linux_arm64 ;;
*) echo "no release is made for $(uname -m)" >&2; exit 69 ;;
esac

rm -rf target/publish
files=target/publish/files
mkdir -p "$files"

cp "$image" "$files/towline.oci.tar"
cp deploy/crds.yaml deploy/hub.yaml "$files/"
# The same bytes for the same contents: sorted, no names of users, no time.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -c -C "$binaries" kubectl-towline -C "$PWD" LICENSE \
  | gzip -n -9 > "$files/kubectl-towline_v${version}_$platform.tar.gz"
hack/sbom.sh
cp target/sbom/*.cdx.json "$files/"
helm=$(hack/client-binaries.sh helm-4 | cut -d ' ' -f 2)
for chart in charts/towline-hub charts/towline-agent; do
  "$helm" package --destination "$files" "$chart" >/dev/null
done
if [ -n "${BASE_URL:-}" ]; then
  hack/krew-manifest.sh "$version" "$BASE_URL" "${HOMEPAGE:?}" "$files" > "$files/towline.yaml"
fi
(cd "$files" && sha256sum -- * > SHA256SUMS)

# What the changelog says of this version, or what is unreleased.
notes=$(awk -v version="$version" '
  /^## / { on = index($0, "## " version) == 1 || index($0, "## [" version "]") == 1; next } on' CHANGELOG.md)
[ -n "$notes" ] || notes=$(awk '/^## / { on = /^## Unreleased/; next } on' CHANGELOG.md)
printf '%s\n' "$notes" > target/publish/NOTES.md
cat "$files/SHA256SUMS"
