#!/bin/sh
# Builds one fuzz target with coverage feedback and the address sanitizer, and runs it:
#   fuzz/run.sh record -max_total_time=60
# RUSTC_BOOTSTRAP lets a stable compiler take the sanitizer flag; with cargo-fuzz and a nightly
# compiler, `cargo fuzz run record fuzz/corpus/record fuzz/seeds/record` does the same.
set -eu
target=${1:?usage: fuzz/run.sh TARGET [libFuzzer options]}
shift
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# Named --target, so that build scripts and macros are not instrumented.
RUSTC_BOOTSTRAP=1 \
RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
CARGO_TARGET_DIR=target cargo build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
exec "target/$host/release/$target" "corpus/$target" "seeds/$target" \
	-artifact_prefix="artifacts/$target/" -max_len=4096 "$@"
