#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Installs what lcap needs beside a Rust toolchain: setup.sh build | test
#
# Looks for what is missing first, so that it does nothing, and needs no root, where all is there.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

missing_deb= missing_rpm=
# need DEB RPM COMMAND...: unless the command succeeds, the package is missing.
need() {
	deb=$1 rpm=$2
	shift 2
	if ! "$@" >/dev/null 2>&1; then
		missing_deb="$missing_deb $deb" missing_rpm="$missing_rpm $rpm"
	fi
}

what=${1:-test}
need gcc gcc have cc
need libc6-dev glibc-devel test -e /usr/include/stdio.h
need pkg-config pkgconf-pkg-config have pkg-config
need libzmq3-dev zeromq-devel pkg-config --atleast-version=4.3.1 libzmq
# Manual pages. On RHEL it is in a repository that is off by default; there, see below.
if have apt-get; then
	need go-md2man '' have go-md2man
fi
if [ "$what" = test ]; then
	need g++ gcc-c++ have c++
	need valgrind valgrind have valgrind
	need binutils binutils have readelf
	# Sinks are tested against a real one, started by the tests.
	need redis-server redis have redis-server
	need openssl openssl have openssl
	# The examples run with the system's Python, whichever other comes first in PATH.
	need python3 python3 test -x /usr/bin/python3
	need python3-zmq python3-zmq /usr/bin/python3 -c 'import zmq'
	# Dashboards and alerts are tried with the real one.
	need prometheus golang-github-prometheus have promtool
	# The C headers are tested under the address and undefined-behaviour sanitizers.
	if ! have apt-get; then
		need '' 'libasan libubsan' sh -c 'echo "int main(void){return 0;}" |
			cc -xc -fsanitize=address,undefined -o /dev/null -'
	fi
fi

if [ -n "$missing_deb$missing_rpm" ]; then
	as_root=
	if [ "$(id -u)" != 0 ]; then
		if ! have sudo; then
			echo "setup: as root, install:$missing_deb (Debian) or$missing_rpm (RHEL)" >&2
			exit 1
		fi
		as_root=sudo
	fi
	if have apt-get; then
		echo "setup: apt-get install$missing_deb"
		$as_root apt-get update -qq
		# shellcheck disable=SC2086 # a list of words, and sudo or nothing
		$as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $missing_deb >/dev/null
	elif have dnf; then
		echo "setup: dnf install$missing_rpm (zeromq and python3-zmq are in EPEL)"
		$as_root dnf install -y -q epel-release || true
		have go-md2man || $as_root dnf install -y -q golang-github-cpuguy83-md2man ||
			echo "setup: no go-md2man (CRB has it): manual pages will be left out" >&2
		# shellcheck disable=SC2086
		$as_root dnf install -y -q $missing_rpm
	else
		echo "setup: neither apt-get nor dnf is here; install:$missing_deb" >&2
		exit 1
	fi
fi

if ! have cargo; then
	echo "setup: cargo is missing; get a Rust toolchain from https://rustup.rs" >&2
	exit 1
fi
if [ "$what" = test ] && ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
	if have rustup; then
		echo "setup: rustup component add rustfmt clippy"
		rustup component add rustfmt clippy
	else
		echo "setup: rustfmt and clippy are missing; install them with your Rust toolchain" >&2
		exit 1
	fi
fi
