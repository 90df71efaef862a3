#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later
# Tries the units under a real systemd: OUT=target/release test-systemd.sh. Boots this machine's own systemd as the first
# process of namespaces, on an overlay of this machine's files, installs into that, starts, reloads, hangs and stops lcapd and a
# worker there, and looks into the journal. Root only, on a machine with systemd installed (it need not run); half a minute.
# Nothing outside of the overlay is changed.
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-target/release}
[ "$(id -u)" = 0 ] || { echo "test-systemd.sh: needs root, for namespaces and an overlay" >&2; exit 1; }
[ -x /lib/systemd/systemd ] || { echo "test-systemd.sh: there is no systemd on this machine" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/out" "$work/layer"

cat > "$work/checks.sh" << 'CHECKS'
exec > /out/log 2>&1
set -ux
fail() { echo "FAILED: $*" > /out/verdict; systemctl poweroff --force; exit 1; }
is() { [ "$(systemctl show "$1" -p "$2" --value)" = "$3" ] || fail "$1: $2 is not $3"; }
wait_for() { # SECONDS COMMAND...
	n=$(($1 * 10)); shift
	until "$@"; do n=$((n - 1)); [ $n -gt 0 ] || return 1; sleep 0.1; done
}
export LCAP_REC_URI=tcp://127.0.0.1:8189
systemd-analyze verify lcapd.service lcapd@a.service lcap-hsm-worker@a.service || fail "systemd-analyze verify"

systemctl start lcapd || fail "lcapd does not start"
is lcapd Type notify; is lcapd ActiveState active; is lcapd StatusText reading
lcap reader register changelog audit --from oldest || fail "nobody can register"
wait_for 20 sh -c '[ "$(lcap changelog --reader audit lustre-MDT0000 | wc -l)" -gt 10 ]' || fail "no records"
pid=$(systemctl show lcapd -p MainPID --value)
grep -q '^CapEff:.*0000000000200004$' "/proc/$pid/status" || fail "capabilities"
grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status" || fail "new privileges"
journalctl -q --sync
journalctl -q -u lcapd MDT=lustre-MDT0000 STREAM=changelog READER=audit | grep -q 'session opened' || fail "fields in the journal"

sed -i 's/^\[server\]/[server]\nlog = "debug"/' /etc/lcap/lcapd.toml
systemctl reload lcapd || fail "reload"
sed -i 's/^log = .*/log = "loud=7=8"/' /etc/lcap/lcapd.toml
if systemctl reload lcapd; then fail "a wrong configuration was taken"; fi
sed -i 's/^log = .*/log = "info"/' /etc/lcap/lcapd.toml
is lcapd ActiveState active; is lcapd MainPID "$pid"

# A worker, and an upcall, whose spool the unit lets lcapd write to.
printf '#!/bin/sh\ntouch /run/ran\n' > /usr/bin/ran; chmod 755 /usr/bin/ran
printf 'LCAP_REC_URI=%s\nLCAP_WORKER_OPTIONS=--exec ran --jobs 2\n' "$LCAP_REC_URI" > /etc/lcap/worker-a.conf
systemctl start lcap-hsm-worker@a || fail "the worker does not start"
cp /etc/lcap/upcall.toml.sample /etc/lcap/upcall.toml
/usr/libexec/lcap/lhsm_mdt_upcall ARCHIVE lustre 1 0 x '[0x200000402:0x1:0x0]' || fail "upcall"
wait_for 20 test -e /run/ran || fail "the request did not run"

# One that hangs is ended by the watchdog, and started again.
mkdir -p /run/systemd/system/lcapd.service.d
printf '[Service]\nWatchdogSec=2s\n' > /run/systemd/system/lcapd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart lcapd || fail restart
systemctl kill -s STOP lcapd
wait_for 30 sh -c '[ "$(systemctl show lcapd -p NRestarts --value)" = 1 ]' || fail "the watchdog did nothing"
wait_for 30 systemctl -q is-active lcapd || fail "it did not come back"
lcap reader list | grep -q audit || fail "its state is gone"

timeout 60 systemctl stop lcap-hsm-worker@a lcapd || { journalctl -q -n 30; fail stop; }
is lcapd ActiveState inactive; is lcapd Result success; is lcap-hsm-worker@a Result success
systemctl start lcapd@second 2> /dev/null && fail "lcapd@second started without a configuration"
sed 's|^\[server\]|[server]\nstate_dir = "/var/lib/lcap/second"|' /etc/lcap/lcapd.toml > /etc/lcap/second.toml
systemctl stop lcapd@second; systemctl reset-failed lcapd@second; systemctl start lcapd@second || fail "lcapd@second"
[ -e /var/lib/lcap/second/lcapd.redb ] || fail "lcapd@second has no state of its own"
systemctl stop lcapd@second
echo ok > /out/verdict
systemctl poweroff --force
CHECKS

cat > "$work/boot.sh" << 'BOOT'
set -eu
work=$1
mount -t tmpfs tmpfs "$work/layer"
mkdir "$work/layer/upper" "$work/layer/work" "$work/layer/root"
root=$work/layer/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
for dir in run tmp dev var/lib var/spool var/log; do mount -t tmpfs tmpfs "$root/$dir"; done
for node in null zero full random urandom tty; do
	touch "$root/dev/$node"
	mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm" "$root/dev/pts" "$root/out"
mount --bind "$work/out" "$root/out"
cp "$work/checks.sh" "$root/run/checks.sh"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
	mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
	mkdir "$root/sys/fs/cgroup/systemd"
	mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
fi
ip link set lo up
make --no-print-directory install DESTDIR="$root" PREFIX=/usr LIBDIR=/usr/lib64 OUT="$OUT" > "$work/install" 2>&1 || { cat "$work/install"; exit 1; }
echo /usr/lib64 > "$root/etc/ld.so.conf.d/lcap-test.conf"
chroot "$root" ldconfig
units=$root/etc/systemd/system
for unit in systemd-udevd systemd-udev-trigger systemd-networkd systemd-resolved systemd-timesyncd systemd-logind; do
	ln -sf /dev/null "$units/$unit.service"
done
rm -rf "$root/etc/systemd/system/lcapd.service.d"
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=checks.service\n' > "$units/checks.target"
printf '[Service]\nType=oneshot\nExecStart=/bin/sh /run/checks.sh\n' > "$units/checks.service"
cat > "$root/etc/lcap/lcapd.toml" << 'TOML'
[server]
[[mdt]]
name = "lustre-MDT0000"
source = "sim:rate=100,seed=1"
[[stream]]
name = "changelog"
delivery = "broadcast"
publish = "tcp://127.0.0.1:8190"
policies = [ { module = "fifo" }, { module = "compact", window = "10ms" } ]
[hsm]
fsname = "lustre"
spool = "/var/spool/lcap-hsm"
TOML
cd "$root"
mkdir old
pivot_root . old
cd /
umount -l /old
exec env -i container=lcap-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=console --unit=checks.target
BOOT

export OUT
unset MAKEFLAGS MFLAGS MAKELEVEL
timeout -k 5 180 unshare --mount --pid --ipc --uts --net --cgroup --fork --kill-child --propagation private \
	sh "$work/boot.sh" "$work" > "$work/console" 2>&1 < /dev/null || true
if [ "$(cat "$work/out/verdict" 2> /dev/null)" != ok ]; then
	tail -n 30 "$work/console" "$work/out/log" >&2 || true
	echo "systemd: $(cat "$work/out/verdict" 2> /dev/null || echo 'FAILED: it did not come to its end')" >&2
	exit 1
fi
echo "systemd: all well ($(systemctl --version | head -n 1))"
