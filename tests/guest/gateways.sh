# A host with paths over two gateways, of which one serves the volume: what it finds out about them, and a file system on both while
# owners die, come back, and give the volume away.
# Wants: TARGET with LUN 0 of 128 MiB, volume moves, and NAA, its name; PORT and PORT_2, the portals of gateway1 and gateway2.
map=/dev/mapper/3$NAA
portal_2=127.0.0.1:$PORT_2

step discovery at either gateway finds both
# Tags are given out to whoever comes first.
for one in "$portal" "$portal_2"; do
    iscsiadm -m discovery -t sendtargets -p "$one" | sort > /tmp/found
    grep -qx "$one,[12] $TARGET" /tmp/found || { cat /tmp/found; fail "$one does not name itself"; }
    [ "$(cut -d, -f2 /tmp/found | sort)" = "1 $TARGET
2 $TARGET" ] || { cat /tmp/found; fail "not two portals with a tag each at $one"; }
    [ "$one" = "$portal" ] && cp /tmp/found /tmp/found-first
done
cmp /tmp/found-first /tmp/found || fail "two gateways tell different things"
for setting in 'node.conn[0].timeo.noop_out_interval=2' 'node.conn[0].timeo.noop_out_timeout=3'; do
    iscsiadm -m node -T "$TARGET" --op update -n "${setting%%=*}" -v "${setting#*=}"
done
iscsiadm -m node -T "$TARGET" --login
printf 'defaults {\n find_multipaths no\n user_friendly_names no\n polling_interval 1\n max_polling_interval 1\n no_path_retry 60\n path_grouping_policy group_by_prio\n failback immediate\n fast_io_fail_tmo 2\n}\n' > /etc/multipath.conf
multipathd
udevadm settle
appears "$map"

# path GATEWAY: the disk that it shows.
path() {
    [ "$1" = gateway1 ] && want=$PORT || want=$PORT_2
    for connection in /sys/class/iscsi_connection/*; do
        session=${connection##*/connection} session=${session%%:*}
        [ "$(cat "$connection/persistent_port")" != "$want" ] || ls "/sys/class/iscsi_session/session$session"/device/target*/*:0/block
    done
}
other() { [ "$1" = gateway1 ] && echo gateway2 || echo gateway1; }
owner() { administrator volume show moves --json | tr ',{}' '\n\n\n' | sed -n 's/.*"owner": *"\(gateway[12]\)".*/\1/p'; }
# What the kernel takes a path for, and what multipath makes of it.
kernel() { cat "/sys/block/$(path "$1")/device/access_state"; }
shows() { multipath -ll "3$NAA" > /tmp/multipath; grep -E " $(path "$1") " /tmp/multipath | grep -q "$2"; }
# The owner's path is active, and the other one is a ghost.
serves() { [ "$(owner)" = "$1" ] && shows "$1" 'active ready running' && shows "$(other "$1")" 'active ghost running'; }

step one path is active, the other one in standby
first=$(owner) second=$(other "$first")
within 60 serves "$first"
multipath -ll
[ "$(multipath -ll "3$NAA" | grep -c 'policy=')" -eq 2 ] || fail "not two groups of paths"
for gateway in $first $second; do
    says 0 'active/optimized' sg_rtpg --decode "/dev/$(path "$gateway")"
    also 'standby' 'target port group id *: *0x1' 'target port group id *: *0x2'
    [ "$(cat "/sys/block/$(path "$gateway")/device/dh_state")" = alua ] || fail "no ALUA at $gateway"
done
[ "$(kernel "$first") $(kernel "$second")" = "active/optimized standby" ] || fail "the kernel sees $(kernel "$first") and $(kernel "$second")"
standby=/dev/$(path "$second")
says 2 'standby' sg_turs -v "$standby"
says 2 'not ready' sg_dd if="$standby" of=/dev/null bs=512 count=1 blk_sgio=1
says 0 'LUNETTE' sg_inq "$standby"
says 0 'Logical block length=512' sg_readcap "$standby"
says 0 'PR generation' sg_persist --in -k "$standby"
says 2 'not ready' sg_sanitize --block --quick "$standby"
for gateway in $first $second; do sg_vpd --page=0x80 --raw "/dev/$(path "$gateway")" > "/tmp/serial-$gateway"; done
cmp /tmp/serial-gateway1 /tmp/serial-gateway2 || fail "two serial numbers"

step fio with verification, from here to the end
mkfs.ext4 -q -F "$map"
mkdir -p /mnt/ext4
mount "$map" /mnt/ext4
dd if=/dev/urandom of=/mnt/ext4/stays bs=1M count=4 2> /dev/null
sync
md5sum /mnt/ext4/stays > /tmp/sums
load() {
    while [ ! -e /tmp/stop ]; do
        fio --name=load --filename=/mnt/ext4/fio --size=1M --rate=512k --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=8 \
            --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > /tmp/fio 2>&1 || { touch /tmp/failed; return; }
        echo >> /tmp/rounds
    done
}
# The longest time that a block takes to be written is how long the host stood still.
beat() {
    while [ ! -e /tmp/stop ]; do
        from=$(date +%s%N)
        dd if=/dev/zero of=/mnt/ext4/beat bs=4k count=1 oflag=direct conv=notrunc 2> /dev/null || { touch /tmp/failed; return; }
        echo $((($(date +%s%N) - from) / 1000000)) >> /tmp/beats
        sleep 0.05
    done
}
working() { [ ! -e /tmp/failed ] || { cat /tmp/fio; fail "the load"; }; }
rounds() { wc -l < /tmp/rounds; }
more() { working; [ "$(rounds)" -gt "$1" ]; }
progress() { within 120 more "$(rounds)"; }
stood() { echo "the longest write took $(sort -n /tmp/beats | tail -n 1) ms $*"; : > /tmp/beats; }
touch /tmp/rounds
: > /tmp/beats
load & load=$!
beat & beat=$!
progress
stood "while nothing happened"

for _ in 1 2; do
    dead=$(owner) next=$(other "$dead")
    step "$dead is killed, $next takes over"
    administrator kill "$dead"
    progress
    stood "when $dead was killed"
    [ "$(owner)" = "$next" ] || fail "$(owner) owns the volume"
    step "$dead comes back, as a standby path"
    administrator start "$dead"
    within 120 serves "$next"
    progress
    stood "when $dead came back"
    [ "$(kernel "$next") $(kernel "$dead")" = "active/optimized standby" ] || fail "the kernel sees $(kernel "$next") and $(kernel "$dead")"
done

for _ in 1 2 3 4; do
    from=$(owner) to=$(other "$from")
    step "the volume moves from $from to $to"
    administrator volume own moves --gateway "$to" > /dev/null
    within 60 serves "$to"
    progress
    stood "by a move"
done

step stop, and look at what is left
touch /tmp/stop
wait $load $beat
working
echo "$(rounds) rounds"
md5sum -c /tmp/sums || fail "a file differs"
umount /mnt/ext4
e2fsck -fn "$map" || fail "e2fsck finds errors"
unseen "dev $(basename "$(readlink -f "$map")"),"'|EXT4-fs (error|warning)|JBD2'
release "3$NAA"
iscsiadm -m node --logoutall=all
[ -z "$(ls /sys/class/iscsi_session)" ] || fail "sessions are left"
echo "gateways: all steps passed"
