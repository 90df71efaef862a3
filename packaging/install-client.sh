#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Installs the client library, the preload library, headers and the pkg-config file.
# `make install` calls it; everything comes from the environment:
#   DESTDIR, PREFIX (/usr), LIBDIR ($PREFIX/lib), OUT (target/release), CC (cc)
#
# The shared library is linked here, from the static one: its symbols are versioned, by a version
# script, and rustc gives the linker one of its own when it links (there can only be one). The
# liblcapclient.so that cargo leaves in target/ has the same soname and functions, without versions.
set -eu

cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/usr}
LIBDIR=${LIBDIR:-$PREFIX/lib}
DESTDIR=${DESTDIR:-}
OUT=${OUT:-target/release}
CC=${CC:-cc}
FULL=liblcapclient.so.1.0.0

for file in liblcapclient.a liblcap_llapi.so; do
	[ -f "$OUT/$file" ] || { echo "$OUT/$file is missing: make build" >&2; exit 1; }
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

install -d -m 755 "$DESTDIR$LIBDIR/pkgconfig" "$DESTDIR$PREFIX/include"

# Each exported function is asked for, so that the linker takes it, and what it needs, out of the
# archive; the rest of the archive stays out.
wanted=$(sed -n 's/^\t\(lcap_[a-z_]*\);/-Wl,-u,\1/p' packaging/liblcapclient.map)
# shellcheck disable=SC2086 # words are meant
$CC -shared -o "$DESTDIR$LIBDIR/$FULL" $wanted "$OUT/liblcapclient.a" \
	-Wl,--version-script=packaging/liblcapclient.map -Wl,-soname,liblcapclient.so.1 \
	-Wl,--gc-sections -Wl,--as-needed -Wl,-z,relro -Wl,-z,now -Wl,-z,defs ${LDFLAGS:-} \
	-lzmq -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
chmod 755 "$DESTDIR$LIBDIR/$FULL"
ln -sf $FULL "$DESTDIR$LIBDIR/liblcapclient.so.1"
ln -sf liblcapclient.so.1 "$DESTDIR$LIBDIR/liblcapclient.so"
install -m 644 "$OUT/liblcapclient.a" "$DESTDIR$LIBDIR/liblcapclient.a"
if command -v strip > /dev/null; then
	strip --strip-debug "$DESTDIR$LIBDIR/liblcapclient.a"
fi
install -m 755 "$OUT/liblcap_llapi.so" "$DESTDIR$LIBDIR/liblcap_llapi.so"

install -m 644 include/lcap_client.h include/lcap_changelog.h include/lcap_mover.h "$DESTDIR$PREFIX/include/"
sed -e "s|@PREFIX@|$PREFIX|" -e "s|@LIBDIR@|$LIBDIR|" -e "s|@VERSION@|$version|" \
	packaging/lcapclient.pc.in > "$DESTDIR$LIBDIR/pkgconfig/lcapclient.pc"
chmod 644 "$DESTDIR$LIBDIR/pkgconfig/lcapclient.pc"
