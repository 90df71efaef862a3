#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Makes the RPM packages out of what is built: OUT=target/release build.sh DIR
set -eu
cd "$(dirname "$0")/../.."
. packaging/package-of.sh
[ $# -eq 1 ] || { echo "usage: OUT=target/release build.sh DIR" >&2; exit 2; }
OUT=${OUT:-target/release}
for tool in rpmbuild go-md2man; do
	command -v $tool > /dev/null || { echo "build.sh: $tool is missing (rpm or rpm-build, go-md2man)" >&2; exit 1; }
done
mkdir -p "$1"
dest=$(cd "$1" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree

unset MAKEFLAGS MFLAGS MAKELEVEL
make --no-print-directory install DESTDIR="$tree" PREFIX=/usr LIBDIR=/usr/lib64 OUT="$OUT" > "$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
# Python looks for packages in its own version's directory only; this one is pure, and the spec moves
# it to where the machine's Python looks.
install -d "$tree/usr/lib/python3/dist-packages"
cp -r python/lcap "$tree/usr/lib/python3/dist-packages/"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +
site=${PYTHON3_SITELIB:-usr/lib/python3.9/site-packages}
find "$tree/usr/share/man" -type f -exec gzip -9n {} +
(cd "$tree" && find . -type f -o -type l | sed 's|^\./||') | package_of > "$work/files"
for package in lcapd lcap lcap-policies client devel python3-lcap; do
	sed -n "s|^$package |/|p" "$work/files" |
		sed -e 's|^/etc/lcap/lcapd.toml.sample|%config &|' -e "s|^/usr/lib/python3/dist-packages|/$site|" \
			-e 's|\(.*\)|\1|' > "$work/files.$package"
done
mkdir -p "$tree/$site"
mv "$tree/usr/lib/python3/dist-packages/lcap" "$tree/$site/"
rm -r "$tree/usr/lib/python3"

# Cargo has its own idea of debug information; strip what is shipped.
find "$tree" -type f \( -path '*/bin/*' -o -path '*/sbin/*' -o -path '*/libexec/*' -o -name '*.so*' \) -print |
	while IFS= read -r file; do
		if head -c 4 "$file" | grep -q ELF; then strip --strip-unneeded "$file"; fi
	done
rpmbuild -bb --quiet --define "_topdir $work/rpm" --define "_rpmdir $dest" --define "lcap_version $version" \
	--define "lcap_tree $tree" --define "lcap_files $work/files" --define "_build_id_links none" \
	packaging/rpm/lcap.spec > "$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
find "$dest" -name "*-$version-*.rpm" | sort
