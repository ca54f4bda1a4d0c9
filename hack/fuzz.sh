#!/usr/bin/env bash
# Fuzzes, guided by coverage. usage: hack/fuzz.sh SECONDS [TARGET...]   looks for more, and adds it to fuzz/corpus
#                                    hack/fuzz.sh minimise [TARGET...]  drops what adds no coverage
#
# Needs the pinned stable toolchain and g++ only: rustc's own flags put LLVM's coverage counters into the code, and
# libFuzzer, which reads them, is C++ inside the crate libfuzzer-sys. There is no address sanitizer, which stable does
# not have; the workspace forbids unsafe code, and what is looked for are panics, overflows and broken promises.
set -euo pipefail
cd "$(dirname "$0")/.."

TARGET=$(uname -m)-unknown-linux-gnu
BUILD=$PWD/target/fuzz
ENGINE=$BUILD/$TARGET/release/fuzz-engine
# Larger inputs are slower and find little: limits that are counted in bytes have tests of their own.
LARGEST=4096
# What a corpus may hold, so that all are replayed in seconds (fuzz/tests/corpora.rs).
MOST_FILES=200
MOST_KIB=300
# A single input takes microseconds; one that takes this many seconds has found something, too.
SLOWEST=10

build() {
  local flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
    --cfg=fuzzing
  )
  # With --target the flags are for the target alone, not for build scripts and macros.
  RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$BUILD cargo build --quiet --locked --release --target "$TARGET" \
    --manifest-path fuzz/engine/Cargo.toml
}

engine() { # TARGET ARGUMENT...
  local target=$1
  shift
  TOWLINE_FUZZ_TARGET=$target "$ENGINE" -max_len=$LARGEST -timeout=$SLOWEST -rss_limit_mb=2048 \
    -artifact_prefix="$BUILD/$target-" "$@"
}

# Chooses anew what was found: as little as gives as much coverage as possible, within the limits. Files that a person has
# named stay as they are.
minimise() { # TARGET
  local target=$1 corpus=fuzz/corpus/$1 best=$work/$1 name
  mkdir -p "$best" "$BUILD/found/$target"
  # Named by their SHA-1, and written in the order of what they add.
  engine "$target" -set_cover_merge=1 -use_counters=0 "$best" "$corpus" "$BUILD/found/$target" >"$work/log" 2>&1 ||
    { tail -20 "$work/log" >&2; return 1; }
  find "$corpus" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
  sha1sum "$corpus"/* | cut -d' ' -f1 >"$work/named"
  for name in $(ls -tr "$best"); do
    [ "$(ls "$corpus" | wc -l)" -lt $MOST_FILES ] || break
    [ $(($(cat "$corpus"/* "$best/$name" | wc -c) / 1024)) -lt $MOST_KIB ] || break
    grep -q "$name" "$work/named" || cp "$best/$name" "$corpus/"
  done
  echo "$target: $(ls "$corpus" | wc -l) files, $(cat "$corpus"/* | wc -c) bytes"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mode=${1:?seconds for each target, or minimise}
shift
[ $# -gt 0 ] || set -- $(ls fuzz/corpus)
build
failed=()
for target in "$@"; do
  corpus=fuzz/corpus/$target
  if [ "$mode" = minimise ]; then
    minimise "$target"
    continue
  fi
  # New finds go to a folder of their own: a run shall not make a corpus larger than can be replayed in seconds.
  found=$BUILD/found/$target
  mkdir -p "$found"
  log=$BUILD/$target.log
  if ! engine "$target" -max_total_time="$mode" -print_final_stats=1 "$found" "$corpus" >"$log" 2>&1; then
    failed+=("$target")
    grep -aE 'panicked|ERROR|Test unit written' -A2 "$log" | head -20
  fi
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  cover=$(grep -aoE ' cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)
  echo "$target: ${runs:-?} executions,${cover:- no coverage}"
done
[ ${#failed[@]} -eq 0 ] || { echo "broken promises: ${failed[*]}; the logs are in $BUILD" >&2; exit 1; }
