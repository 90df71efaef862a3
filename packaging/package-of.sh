# SPDX-License-Identifier: LGPL-3.0-or-later
# shellcheck shell=sh
# Which package an installed file belongs to, for packaging/deb and packaging/rpm: reads paths without
# the leading slash, prints `PACKAGE PATH`. What nobody claims is the daemon's.
#   client  the library that programs are linked with, and the preload library
#   devel   what compilers need
package_of() {
	while IFS= read -r path; do
		case $path in
		# What a node of workers needs.
		usr/lib/systemd/system/lcap-hsm-worker* | usr/share/lcap/examples/worker.conf | etc/lcap/worker_posix.toml.sample)
			package=lcap ;;
		usr/bin/* | usr/share/man/man1/* | usr/share/bash-completion/* | usr/share/zsh/* | usr/share/fish/*)
			package=lcap ;;
		usr/lib*/lcap/policies/* | usr/share/man/man7/lcap-policy.7*) package=lcap-policies ;;
		usr/lib*/liblcapclient.so.1* | usr/lib*/liblcap_llapi.so | usr/share/man/man7/liblcap_llapi.7*)
			package=client ;;
		usr/include/* | usr/lib*/liblcapclient.so | usr/lib*/liblcapclient.a | usr/lib*/pkgconfig/* | usr/share/man/man3/*)
			package=devel ;;
		usr/lib/python3/*) package=python3-lcap ;;
		*) package=lcapd ;;
		esac
		printf '%s %s\n' "$package" "$path"
	done
}
