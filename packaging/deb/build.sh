#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Makes the Debian packages out of what is built: OUT=target/release build.sh DIR
set -eu
cd "$(dirname "$0")/../.."
. packaging/package-of.sh
[ $# -eq 1 ] || { echo "usage: OUT=target/release build.sh DIR" >&2; exit 2; }
OUT=${OUT:-target/release}
for tool in dpkg-deb dpkg-shlibdeps go-md2man; do
	command -v $tool > /dev/null || { echo "build.sh: $tool is missing (dpkg-dev, go-md2man)" >&2; exit 1; }
done
mkdir -p "$1"
dest=$(cd "$1" && pwd)
arch=$(dpkg --print-architecture)
libdir=usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree

unset MAKEFLAGS MFLAGS MAKELEVEL
make --no-print-directory install DESTDIR="$tree" PREFIX=/usr LIBDIR="/$libdir" OUT="$OUT" > "$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
install -d "$tree/usr/lib/python3/dist-packages"
cp -r python/lcap "$tree/usr/lib/python3/dist-packages/"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +
# /lib is where Debian's systemd looks, too, since /usr was merged.
find "$tree/usr/share/man" -type f -exec gzip -9n {} +
# Debian's zsh looks here.
mv "$tree/usr/share/zsh/site-functions" "$tree/usr/share/zsh/vendor-completions"
find "$tree" -type f \( -path '*/bin/*' -o -path '*/sbin/*' -o -path '*/libexec/*' -o -name '*.so*' \) -print |
	while IFS= read -r file; do
		if head -c 4 "$file" | grep -q ELF; then strip --strip-unneeded "$file"; fi
	done

(cd "$tree" && find . -type f -o -type l | sed 's|^\./||') | package_of > "$work/files"

debian_name() {
	case $1 in client) echo liblcapclient1 ;; devel) echo liblcapclient-dev ;; *) echo "$1" ;; esac
}

# Libraries, with the versions that the symbols ask for.
needs() { # ROOT
	mkdir -p "$work/shlib/debian"
	printf 'Source: lcap\n\nPackage: lcap\nArchitecture: any\n' > "$work/shlib/debian/control"
	elf=$(find "$1" -type f -exec sh -c 'head -c 4 "$1" | grep -q ELF && echo "-e$1"' sh {} \;)
	[ -n "$elf" ] || return 0
	# shellcheck disable=SC2086 # a list of words; paths are ours and have no blanks
	(cd "$work/shlib" && dpkg-shlibdeps --ignore-missing-info -O $elf 2> /dev/null) | sed 's/^shlibs:Depends=//'
}

for package in lcapd lcap lcap-policies client devel python3-lcap; do
	name=$(debian_name $package)
	root=$work/$name
	mkdir -p "$root/DEBIAN" "$root/usr/share/doc/$name"
	sed -n "s/^$package //p" "$work/files" | while IFS= read -r file; do
		mkdir -p "$root/$(dirname "$file")"
		cp -a "$tree/$file" "$root/$file"
	done
	{
		cat <<- TEXT
			Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
			Upstream-Name: lcap

			Files: *
			Copyright: the lcap authors
			License: LGPL-3+
			 On Debian systems the text is in /usr/share/common-licenses/LGPL-3.
		TEXT
	} > "$root/usr/share/doc/$name/copyright"
	gzip -9n < CHANGELOG.md > "$root/usr/share/doc/$name/changelog.gz"
	for script in postinst prerm postrm; do
		if [ -f "packaging/deb/$name.$script" ]; then
			install -m 755 "packaging/deb/$name.$script" "$root/DEBIAN/$script"
		fi
	done
	(cd "$root" && find etc -type f 2> /dev/null | sed 's|^|/|') > "$root/DEBIAN/conffiles"
	[ -s "$root/DEBIAN/conffiles" ] || rm "$root/DEBIAN/conffiles"
	[ "$name" = liblcapclient1 ] && echo 'activate-noawait ldconfig' > "$root/DEBIAN/triggers"
	size=$(du -sk --exclude=DEBIAN "$root" | cut -f 1)
	sed -e "s/@VERSION@/$version/g" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" \
		-e "s/@LIBS@/$(needs "$root" | sed 's/[&/]/\\&/g')/" \
		"packaging/deb/$name.control" > "$root/DEBIAN/control"
	find "$root" -type d -exec chmod 755 {} +
	dpkg-deb --root-owner-group --build "$root" "$dest" > /dev/null
	echo "$dest/${name}_${version}_$(sed -n 's/^Architecture: //p' "$root/DEBIAN/control").deb"
done
