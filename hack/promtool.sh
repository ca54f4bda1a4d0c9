#!/usr/bin/env bash
# Prints the path of promtool: the one on PATH, or that of Debian's package `prometheus`, which is unpacked once into
# ${XDG_CACHE_HOME:-~/.cache}/towline and not installed: nobody wants its service here. Progress goes to stderr.
set -euo pipefail

if command -v promtool; then exit 0; fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/towline
if [ -x "$cache/promtool" ]; then echo "$cache/promtool"; exit 0; fi
command -v apt-get >/dev/null || { echo "there is neither promtool nor apt-get" >&2; exit 69; }

mkdir -p "$cache"
tmp=$(mktemp -d "$cache/promtool.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "==> fetching promtool (Debian's package prometheus)" >&2
cd "$tmp"
download() { apt-get download -qq -o APT::Sandbox::User=root prometheus >&2; }
download || { apt-get update -qq >&2 && download; } || { echo "apt-get cannot download prometheus" >&2; exit 69; }
dpkg --extract prometheus_*.deb unpacked
mv unpacked/usr/bin/promtool "$cache/promtool"
echo "$cache/promtool"
