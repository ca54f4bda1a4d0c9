#!/usr/bin/env bash
# Prints the krew manifest of a release: deploy/krew/towline.yaml with version, addresses and checksums.
# usage: krew-manifest.sh VERSION BASE_URL HOMEPAGE DIRECTORY   (DIRECTORY holds kubectl-towline_vVERSION_OS_ARCH.tar.gz)
set -euo pipefail

[ $# = 4 ] || { sed -n 2,3p "$0" >&2; exit 64; }
version=$1 base=$2 homepage=$3 directory=$4
template=$(dirname "$0")/../deploy/krew/towline.yaml

edits=(-e "s|@VERSION@|$version|g" -e "s|@BASE@|$base|g" -e "s|@HOMEPAGE@|$homepage|g")
for platform in linux_amd64 linux_arm64; do
  archive=$directory/kubectl-towline_v${version}_$platform.tar.gz
  # krew unpacks both: a binary without its license may not be handed on.
  for member in kubectl-towline LICENSE; do
    tar tzf "$archive" | sed 's|^\./||' | grep -qx "$member" || { echo "$archive holds no $member" >&2; exit 1; }
  done
  edits+=(-e "s|@SHA256_$platform@|$(sha256sum "$archive" | cut -d' ' -f1)|")
done
sed "${edits[@]}" "$template" | grep -v '^#'
