#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Builds one fuzz target with coverage feedback and the address sanitizer, and runs it:
#   fuzz/run.sh record -max_total_time=60
#   fuzz/run.sh --keep record     puts the smallest inputs that reach what was reached into corpus/
# RUSTC_BOOTSTRAP lets a stable compiler take the sanitizer flag; with cargo-fuzz and a nightly
# compiler, `cargo fuzz run record fuzz/found/record fuzz/corpus/record fuzz/seeds/record` does the same.
set -eu
keep=
if [ "${1-}" = --keep ]; then
	keep=1
	shift
fi
target=${1:?usage: fuzz/run.sh [--keep] TARGET [libFuzzer options]}
shift
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
# Named --target, so that build scripts and macros are not instrumented.
RUSTC_BOOTSTRAP=1 \
RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
CARGO_TARGET_DIR=target cargo build --release --locked --target "$host" --bins
run="target/$host/release/$target"
mkdir -p "corpus/$target" "found/$target" "artifacts/$target"
if [ -n "$keep" ]; then
	new=$(mktemp -d)
	trap 'rm -rf "$new"' EXIT
	# Not what a seed reaches already, and few: they are checked in.
	cp "seeds/$target"/* "$new"
	"$run" "$new" "found/$target" "corpus/$target" -set_cover_merge=1 -max_len=4096 -rss_limit_mb=4096 "$@"
	rm -f "corpus/$target"/*
	for file in "$new"/*; do
		[ -e "seeds/$target/$(basename "$file")" ] || cp "$file" "corpus/$target/"
	done
	exit
fi
exec "$run" "found/$target" "corpus/$target" "seeds/$target" \
	-artifact_prefix="artifacts/$target/" -max_len=4096 -rss_limit_mb=4096 "$@"
