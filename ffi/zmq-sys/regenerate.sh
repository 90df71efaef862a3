#!/bin/sh
# Makes src/bindings.rs from the installed zmq.h. For developers, when a newer libzmq is wanted:
# needs `cargo install bindgen-cli`. The result is checked in, so that builds need no libclang.
set -eu
cd "$(dirname "$0")"
header=$(mktemp --suffix=.h)
echo '#include <zmq.h>' > "$header"
bindgen --no-layout-tests --use-core --with-derive-default --allowlist-item 'zmq_.*|ZMQ_.*' --blocklist-item 'zmq_.*timers.*' \
    --blocklist-function 'zmq_(threadstart|threadclose|sleep|stopwatch.*|atomic.*)' \
    --raw-line '//! Made from zmq.h by regenerate.sh; not to be edited.' --raw-line '#![allow(clippy::all)]' \
    "$header" -o src/bindings.rs
rm "$header"
