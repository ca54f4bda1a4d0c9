#!/usr/bin/env bash
# Installs the Debian packages that building and testing Towline need. Does nothing for those that are
# there already, so that it is cheap to run before every `make test`.
set -euo pipefail

PACKAGES=(
  build-essential ca-certificates curl git jq pkg-config rsync unzip python3-pip
  etcd-server containerd runc containernetworking-plugins busybox-static
  iproute2 iptables conntrack procps util-linux
)
# Only needed to build Kubernetes itself; skipped when its binaries are given or cached.
[ "${WITH_GO:-no}" = yes ] && PACKAGES+=(golang-go golang-github-modern-go-reflect2-dev dpkg-dev)
# Only needed to fetch other clients than the one kubectl. An npm that did not come from Debian will do.
[ "${WITH_NPM:-no}" = yes ] && ! command -v npm >/dev/null && PACKAGES+=(npm)
# Only needed to install Python clients, and only where the python3 on PATH is Debian's.
[ "${WITH_VENV:-no}" = yes ] && PACKAGES+=(python3-venv)

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "these packages are missing and there is no apt-get to install them with: ${missing[*]}" >&2
  echo "install their equivalents, then run this again" >&2
  exit 69
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "these packages are missing: ${missing[*]}" >&2
  echo "run as root, or first: sudo apt-get install ${missing[*]}" >&2
  exit 77
fi

echo "==> installing ${#missing[@]} Debian packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Packages that bring services must not start them: the tests run their own etcd and containerd.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
