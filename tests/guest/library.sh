# What the scripts of guests share; comes before each of them. Wants, of those that use them: PORT, a portal; ADMIN, the port of
# the administrator (tests/src/administrator.rs).
set -eu
portal=127.0.0.1:${PORT:-}
step() { echo "--- $(cut -d. -f1 /proc/uptime) s: $*"; }
fail() { echo "FAILED: $*"; dmesg | tail -40; exit 1; }
# exits STATUS COMMAND..: the command must end with this status.
exits() {
    wanted=$1; shift
    status=0; "$@" || status=$?
    [ "$status" -eq "$wanted" ] || fail "status $status instead of $wanted from: $*"
}
# says STATUS PATTERN COMMAND..: and with a line that matches; `also` and `never` are about the same answer.
says() {
    wanted=$1 pattern=$2; shift 2
    said="$*"
    status=0; "$@" > /tmp/said 2>&1 || status=$?
    [ "$status" -eq "$wanted" ] || { cat /tmp/said; fail "status $status instead of $wanted from: $said"; }
    also "$pattern"
}
also() { for pattern; do grep -Eq -- "$pattern" /tmp/said || { cat /tmp/said; fail "no line like '$pattern' from: $said"; }; done; }
never() { for pattern; do ! grep -Ei -- "$pattern" /tmp/said || fail "a line like '$pattern' from: $said"; done; }
# within SECONDS COMMAND..: it must succeed sooner or later.
within() {
    end=$(($(date +%s) + $1)); shift
    until "$@" > /tmp/tried 2>&1; do
        [ "$(date +%s)" -lt $end ] || { cat /tmp/tried; fail "not yet: $*"; }
        sleep 0.2
    done
}
appears() {
    for _ in $(seq 600); do [ ! -e "$1" ] || return 0; sleep 0.2; done
    ls -l /dev/disk/by-id /dev/mapper || true
    fail "$1 did not appear"
}
# administrator WORDS..: runs `lunette WORDS` where the system is, or `meet NAME` (tests/src/administrator.rs).
administrator() {
    echo "$*" | socat -t 130 - "TCP:10.0.2.2:$ADMIN" > /tmp/administrator
    [ "$(tail -n 1 /tmp/administrator)" = "exit 0" ] || { cat /tmp/administrator; fail "administrator $*"; }
    sed '$d' /tmp/administrator
}
meet() { administrator meet "$1"; }
# Bytes in use on all disks of the nodes.
used() { administrator disk list --json | tr ',{}' '\n\n\n' | sed -n 's/.*"used_bytes": *\([0-9]*\).*/\1/p' | awk '{ sum += $1 } END { printf "%d\n", sum }'; }
used_below() { now=$(used); [ "$now" -lt "$1" ] || { echo "$now bytes are used"; false; }; }
node() { name=$1; shift; iscsiadm -m node -T "$name" -p "$portal" "$@"; }
login() { node "$1" --login; udevadm settle; }
logout() { node "$1" --logout; udevadm settle; }
# Whoever wrote to a map has udev look at it once more after the close, and a map that is looked at is in use.
release() {
    for _ in $(seq 50); do
        udevadm settle
        ! multipath -f "$1" || return 0
        sleep 0.2
    done
    fail "$1 stays in use"
}
unseen() { ! dmesg | grep -E "$1" || fail "the kernel complained"; }
zeros() { cmp -n "$2" "$1" /dev/zero || fail "$1 does not read as zeros"; }
# unit IFACE LUN KIND: the device of the session over an interface of open-iscsi; KIND is block or scsi_generic.
unit() {
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat "$session/ifacename")" != "$1" ] || echo "/dev/$(ls "$session"/device/target*/*:"$2"/"$3")"
    done
}
