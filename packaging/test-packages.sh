#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Tries the packages as an administrator would: test-packages.sh TARGET, with packages in TARGET/deb and
# TARGET/rpm. Debian's are installed, used and removed in a bare Debian that debootstrap makes; the RPM ones
# are looked into, and unpacked and used. Root only; needs the network; takes minutes.
set -eu
[ $# -eq 1 ] || { echo "usage: test-packages.sh TARGET" >&2; exit 2; }
target=$(cd "$1" && pwd)
[ "$(id -u)" = 0 ] || { echo "test-packages.sh: needs root, for debootstrap and chroot" >&2; exit 1; }
for tool in debootstrap rpm; do
	command -v $tool > /dev/null || { echo "test-packages.sh: $tool is missing" >&2; exit 1; }
done
say() { echo "packages: $*"; }
fail() { echo "packages: FAILED: $*" >&2; exit 1; }

work=$(mktemp -d)
daemon=
cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2> /dev/null || true
	umount "$work/root/proc" 2> /dev/null || true
	rm -rf "$work"
}
trap cleanup EXIT

say "a bare Debian"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
debootstrap --variant=minbase "$suite" "$work/root" > "$work/log" 2>&1 || { tail "$work/log"; fail debootstrap; }
mount -t proc proc "$work/root/proc"
# As on any machine under test: no daemon starts by itself.
printf '#!/bin/sh\nexit 101\n' > "$work/root/usr/sbin/policy-rc.d"
chmod 755 "$work/root/usr/sbin/policy-rc.d"
in_root() { chroot "$work/root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
cp /etc/apt/sources.list "$work/root/etc/apt/" 2> /dev/null || true
cp -r /etc/apt/sources.list.d /etc/apt/apt.conf.d "$work/root/etc/apt/" 2> /dev/null || true
cp /etc/resolv.conf /etc/hosts "$work/root/etc/" 2> /dev/null || true
in_root apt-get update -qq > "$work/log" 2>&1 || { tail "$work/log"; fail "apt-get update"; }
in_root sh -c 'find / -xdev -path /proc -prune -o -print | sort' > "$work/before"

say "install"
mkdir "$work/root/debs"
cp "$target"/deb/*.deb "$work/root/debs/"
in_root sh -c 'apt-get install -y -qq --no-install-recommends man-db /debs/*.deb' > "$work/log" 2>&1 ||
	{ tail -n 30 "$work/log"; fail "apt-get install"; }
grep -q 'write /etc/lcap/lcapd.toml' "$work/log" || fail "the package does not say what comes next"
in_root test -L /etc/systemd/system/multi-user.target.wants/lcapd.service || fail "the unit is not enabled"
# A bare Debian leaves manual pages out when it unpacks, so look into the packages.
for deb in "$target"/deb/*.deb; do dpkg-deb -c "$deb"; done > "$work/list"
for page in lcapd lcapd.toml lcap lcap-policy lcap_client liblcap_llapi lcap-reader-register; do
	grep -q "/man./$page\.[0-9]\.gz" "$work/list" || fail "there is no page $page"
done

# What is whose: a node of workers needs no daemon, and nothing that is installed is forgotten.
has() { # DEB PATH...
	deb=$(find "$target/deb" -name "$1_*.deb" | sort | tail -n 1)
	dpkg-deb -c "$deb" | sed 's|.* \./|/|' > "$work/contents"
	shift
	for path in "$@"; do grep -qx "$path" "$work/contents" || fail "$deb has no $path"; done
}
units=/usr/lib/systemd/system
examples=/usr/share/lcap/examples
has lcapd $units/lcapd.service $units/lcapd@.service $examples/lcapd.json $examples/lcap.rules.yml $examples/lcapd.yml \
	$examples/mds.toml $examples/site.toml $examples/telegraf-hsm.conf /etc/lcap/lcapd.toml.sample /etc/lcap/upcall.toml.sample \
	/usr/libexec/lcap/lhsm_mdt_upcall
has lcap $units/lcap-hsm-worker@.service $examples/worker.conf /etc/lcap/worker_posix.toml.sample /usr/bin/lhsm_worker_posix \
	/usr/share/bash-completion/completions/lcap /usr/share/zsh/vendor-completions/_lcap /usr/share/fish/vendor_completions.d/lcap.fish
[ -d "$work/root/var/spool/lcap-hsm" ] || fail "there is no directory for the spool"

say "start and use"
cat > "$work/root/etc/lcap/lcapd.toml" << 'TOML'
[server]
control = "ipc:///tmp/lcap-control"
[[mdt]]
name = "lustre-MDT0000"
source = "sim:records=1000,seed=1"
[[stream]]
name = "changelog"
delivery = "broadcast"
publish = "ipc:///tmp/lcap-changelog"
policies = [ { module = "fifo" }, { module = "compact", window = "10ms" } ]
[[stream]]
name = "work"
delivery = "queue"
publish = "ipc:///tmp/lcap-work"
TOML
in_root lcapd --check || fail "the configuration"
in_root lcapd > "$work/lcapd.log" 2>&1 &
daemon=$!
lcap() { in_root LCAP_REC_URI=ipc:///tmp/lcap-control "$@"; }
n=0
until lcap lcap status > "$work/status" 2>&1 && grep -q '  1000 ' "$work/status"; do
	n=$((n + 1))
	[ $n -lt 120 ] || { cat "$work/status" "$work/lcapd.log"; fail "lcapd does not read"; }
	sleep 0.5
done
lcap lcap reader register changelog audit --from oldest
lcap lcap top --once --interval 0.25 | grep -q audit || fail "lcap top"
lcap lcap doctor > "$work/doctor" || { cat "$work/doctor"; fail "lcap doctor"; }
[ "$(lcap lcap changelog --reader audit lustre-MDT0000 | wc -l)" -gt 100 ] || fail "lcap changelog"
lcap python3 -c '
import lcap
with lcap.Changelogs(reader="audit", auto_ack=True) as logs:
    print(sum(1 for record in logs))' > "$work/python" || fail "the Python package"
[ "$(lcap lcap changelog --reader audit lustre-MDT0000 | wc -l)" = 0 ] || fail "acknowledgement from Python"
in_root bash -c '. /usr/share/bash-completion/completions/lcap && complete -p lcap' > /dev/null || fail "completion"
kill -TERM "$(in_root sh -c 'for p in /proc/[0-9]*; do [ "$(readlink $p/exe)" = /usr/sbin/lcapd ] && basename $p; done' | head -n 1)" 2> /dev/null ||
	kill "$daemon"
wait "$daemon" || fail "lcapd did not end well: $(tail -n 3 "$work/lcapd.log")"
daemon=

say "remove and purge"
in_root sh -c 'apt-get remove -y -qq lcapd' > "$work/log" 2>&1 || { tail "$work/log"; fail remove; }
grep -q changelog_deregister "$work/log" || fail "removal does not speak of the changelog users"
[ -f "$work/root/etc/lcap/lcapd.toml" ] && [ -d "$work/root/var/lib/lcap" ] || fail "removal took the configuration or state"
in_root sh -c 'apt-get purge -y -qq lcapd lcap lcap-policies liblcapclient1 liblcapclient-dev python3-lcap' > "$work/log" 2>&1 ||
	{ tail "$work/log"; fail purge; }
in_root sh -c 'find / -xdev -path /proc -prune -o -print | sort' > "$work/after"
left=$(comm -13 "$work/before" "$work/after" | grep -E '/(lib|python3-)?lcap' | grep -v -e '^/debs' -e '^/tmp/lcap-' || true)
[ -z "$left" ] || fail "left behind: $left"

say "rpm"
check_rpm() { # PATTERN PATH...
	file=$(find "$target/rpm" -name "$1" | sort | tail -n 1)
	[ -n "$file" ] || fail "there is no $1"
	shift
	rpm -qlp "$file" > "$work/list" 2> /dev/null
	for path in "$@"; do grep -qx "$path" "$work/list" || fail "$file has no $path"; done
}
check_rpm 'lcapd-[0-9]*.rpm' /usr/sbin/lcapd /usr/lib/systemd/system/lcapd.service /usr/share/man/man5/lcapd.toml.5.gz \
	/usr/lib/systemd/system/lcapd@.service /usr/share/lcap/examples/lcapd.json
check_rpm 'lcap-[0-9]*.rpm' /usr/bin/lcap /usr/share/man/man1/lcap.1.gz /usr/lib/systemd/system/lcap-hsm-worker@.service /usr/share/lcap/examples/worker.conf
check_rpm 'lcap-policies-*.rpm' /usr/lib64/lcap/policies/compact.so
check_rpm 'lcap-client-libs-*.rpm' /usr/lib64/liblcapclient.so.1 /usr/lib64/liblcap_llapi.so
check_rpm 'lcap-devel-*.rpm' /usr/include/lcap_client.h /usr/lib64/pkgconfig/lcapclient.pc
check_rpm 'python3-lcap-*.rpm'
mkdir -p "$work/rpm"
rpm --root "$work/rpm" --initdb
# Their dependencies are Red Hat's, which nobody has here; scripts want a system to run in.
find "$target/rpm" -name '*.rpm' -exec rpm --root "$work/rpm" --nodeps --noscripts -i {} + || fail "rpm -i"
"$work/rpm/usr/bin/lcap" --version | grep -q lcap || fail "lcap from its rpm"
"$work/rpm/usr/sbin/lcapd" --check -c "$work/rpm/etc/lcap/lcapd.toml.sample" || fail "the sample from its rpm"
rpm --root "$work/rpm" --noscripts -e lcapd lcap lcap-policies lcap-client-libs lcap-devel python3-lcap || fail "rpm -e"
[ ! -e "$work/rpm/usr/sbin/lcapd" ] || fail "rpm -e left lcapd"
say "all well"
