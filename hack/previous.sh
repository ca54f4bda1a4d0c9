#!/usr/bin/env bash
# Makes charts and image of an earlier commit, for the suite of charts to upgrade from and roll back to:
#   hack/previous.sh REVISION DIRECTORY [VERSION]
# and then TOWLINE_PREVIOUS=DIRECTORY make test-helm. With VERSION programs and charts say that they are that version, so that
# agents and hubs one minor version apart can be tried before there are two releases. About 5 minutes on 2 cores.
# What puts the image together is today's, from `make binaries`.
set -euo pipefail

cd "$(dirname "$0")/.."
revision=$(git rev-parse --verify "$1^{commit}")
mkdir -p "$2"
directory=$(cd "$2" && pwd)
version=${3:-}
target=$(uname -m)-unknown-linux-gnu
build=$PWD/target/previous-build
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

git archive "$revision" | tar -x -C "$tree"
if [ -n "$version" ]; then
  # The workspace has one version; what it was says the first line that names one.
  was=$(sed -n 's/^version = "\(.*\)"/\1/p' "$tree/Cargo.toml" | head -n 1)
  sed -i "s/^version = \"$was\"/version = \"$version\"/" "$tree/Cargo.toml"
  sed -i -E "s/^(version|appVersion): .*/\1: $version/" "$tree"/charts/*/Chart.yaml
else
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$tree/Cargo.toml" | head -n 1)
fi
flags=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_RUSTFLAGS
# Not --locked: another version of the workspace's own crates is another lock file.
(cd "$tree" && env "$flags=-C target-feature=+crt-static" CARGO_TARGET_DIR="$build" \
  cargo build --release --target "$target" -p hub -p agent -p cli --bins)
"target/$target/release/image" "$build/$target/release" "$directory/towline.oci.tar" "towline:$version" "$revision"
rm -rf "$directory/charts"
cp -r "$tree/charts" "$directory/charts"
echo "==> charts and image of ${revision:0:7}, as $version, are in $directory" >&2
