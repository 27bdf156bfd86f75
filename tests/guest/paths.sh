# What an administrator does to LUNs in use: space given back, a volume that grows, LUNs that come and go, and portals that are
# lost under two paths.
# Wants: TARGET with LUN 0 of 96 MiB, volume grows, and LUN 1 of 320 MiB; NAA and NAA_1, their names; volume extra of 32 MiB with
# NAA_EXTRA; PORT_2, a second portal.
map=/dev/mapper/3$NAA map_1=/dev/mapper/3$NAA_1
portal_2=127.0.0.1:$PORT_2

step two portals, two paths to each LUN
iscsiadm -m discovery -t sendtargets -p "$portal" > /tmp/found
for one in "$portal" "$portal_2"; do
    grep -qx "$one,1 $TARGET" /tmp/found || fail "$TARGET is not announced at $one"
    for setting in node.session.timeo.replacement_timeout=3 'node.conn[0].timeo.noop_out_interval=2' 'node.conn[0].timeo.noop_out_timeout=4'; do
        iscsiadm -m node -T "$TARGET" -p "$one" --op update -n "${setting%%=*}" -v "${setting#*=}"
    done
    iscsiadm -m node -T "$TARGET" -p "$one" --login
done
printf 'defaults {\n find_multipaths no\n user_friendly_names no\n polling_interval 1\n max_polling_interval 1\n no_path_retry 30\n}\nblacklist {\n wwid 3%s\n}\n' "$NAA_EXTRA" > /etc/multipath.conf
multipathd
udevadm settle
appears "$map"; appears "$map_1"
paths() { [ "$(multipath -ll "3$1" | grep -Ec 'active ready +running')" -eq "$2" ]; }
for naa in "$NAA" "$NAA_1"; do within 150 paths "$naa" 2; done
multipath -ll

step blkdiscard gives space back
before=$(used)
dd if=/dev/urandom of="$map" bs=1M count=24 oflag=direct 2> /dev/null
# Disks give some units of 64 KiB back later than they were freed: what was counted before may have some of those.
[ "$(used)" -ge $((before + 3 * 23 * 1048576)) ] || fail "24 MiB on three nodes take more than $(($(used) - before)) bytes"
blkdiscard -f -o 0 -l 16777216 "$map"
within 150 used_below $((before + 3 * 8 * 1048576 + 1))
zeros "$map" 16777216
blkdiscard -f -z -o 16777216 -l 8388608 "$map"
within 150 used_below $((before + 1))
dd if="$map" of=/tmp/read bs=1M count=24 iflag=direct 2> /dev/null
zeros /tmp/read 25165824

step fstrim gives space back
mkfs.ext4 -q -F "$map"
mkdir -p /mnt/ext4 /mnt/xfs
mount "$map" /mnt/ext4
dd if=/dev/urandom of=/mnt/ext4/stays bs=1M count=4 2> /dev/null
sync
empty=$(used)
dd if=/dev/urandom of=/mnt/ext4/gone bs=1M count=24 2> /dev/null
sync
full=$(used)
[ "$full" -ge $((empty + 3 * 23 * 1048576)) ] || fail "a file of 24 MiB takes $((full - empty)) bytes"
rm /mnt/ext4/gone
sync
# What was freed can be trimmed once its transaction is over, which may be a little after the sync. Units of 64 KiB at its
# borders may stay.
trimmed_below() { fstrim -v /mnt/ext4; used_below "$1"; }
within 150 trimmed_below $((full - 3 * 23 * 1048576))
md5sum /mnt/ext4/stays > /tmp/sums

step fio with verification, from here to the end
mkfs.xfs -q -f "$map_1"
mount "$map_1" /mnt/xfs
load() {
    while [ ! -e /tmp/stop ]; do
        fio --name="$1" --filename="/mnt/$1/fio" --size=1M --rate=512k --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=8 \
            --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > "/tmp/fio-$1" 2>&1 || { touch "/tmp/failed-$1"; return; }
        echo >> "/tmp/rounds-$1"
    done
}
working() { [ ! -e "/tmp/failed-ext4" ] && [ ! -e /tmp/failed-xfs ] || { cat /tmp/fio-*; fail "fio"; }; }
rounds() { cat /tmp/rounds-ext4 /tmp/rounds-xfs 2> /dev/null | wc -l; }
# Both file systems go on working.
more() { working; [ "$(wc -l < /tmp/rounds-ext4)" -gt "$1" ] && [ "$(wc -l < /tmp/rounds-xfs)" -gt "$2" ]; }
progress() { within 150 more "$(wc -l < /tmp/rounds-ext4)" "$(wc -l < /tmp/rounds-xfs)"; }
touch /tmp/rounds-ext4 /tmp/rounds-xfs
load ext4 & load_ext4=$!
load xfs & load_xfs=$!
progress

step the volume of LUN 0 grows
dmesg --clear
administrator volume resize grows --size 160M > /dev/null
sees() { [ "$(blockdev --getsize64 "$1")" -eq 167772160 ]; }
for path in $(ls /sys/block/"$(basename "$(readlink -f "$map")")"/slaves); do
    # Linux looks again by itself: CAPACITY DATA HAS CHANGED, then INQUIRY DATA HAS CHANGED on each path.
    within 150 sees "/dev/$path"
done
dmesg | grep -q 'Capacity data has changed' || fail "no word of a new capacity"
multipathd resize map "3$NAA"
sees "$map" || fail "the map has $(blockdev --getsize64 "$map") bytes"
resize2fs "$map" > /tmp/said 2>&1 || { cat /tmp/said; fail "resize2fs"; }
[ "$(df -m /mnt/ext4 | awk 'NR == 2 { print $2 }')" -gt 120 ] || fail "the file system has not grown"
progress

step a LUN comes and goes under load
administrator target map "$TARGET" extra --lun 5 > /dev/null
lun_5() { ls -d /sys/class/scsi_device/*:0:0:5/device/block/* 2> /dev/null; }
there() { iscsiadm -m session --rescan > /dev/null && udevadm settle && [ "$(lun_5 | wc -l)" -eq 2 ]; }
within 150 there
five=/dev/$(basename "$(lun_5 | head -n 1)")
[ "$(blockdev --getsize64 "$five")" -eq 33554432 ] || fail "LUN 5 has $(blockdev --getsize64 "$five") bytes"
appears "/dev/disk/by-id/wwn-0x$NAA_EXTRA"
dd if=/dev/urandom of="$five" bs=1M count=2 oflag=direct 2> /dev/null
administrator target unmap "$TARGET" extra > /dev/null
# LOGICAL UNIT NOT SUPPORTED (SPC-4 4.5.6).
says 5 '[Ll]ogical unit not supported' sg_turs -v "$five"
for device in $(lun_5); do echo 1 > "$device/device/delete"; done
udevadm settle
progress

step one portal is lost, and comes back
# The listener is the oldest of the port's processes, and goes first.
lose() {
    busybox ps -o pid,args | awk -v listens="TCP-LISTEN:$1," '$2 == "socat" && index($3, listens) == 1 { print $1 }' | sort -n > /tmp/lost
    [ -s /tmp/lost ] || fail "nobody listens at $1"
    for process in $(cat /tmp/lost); do kill "$process" 2> /dev/null || true; done
}
mend() { socat "TCP-LISTEN:$1,bind=127.0.0.1,fork,reuseaddr,nodelay" "TCP:10.0.2.2:$1,nodelay" & }
for port in "$PORT_2" "$PORT"; do
    lose "$port"
    for naa in "$NAA" "$NAA_1"; do within 150 paths "$naa" 1; done
    progress
    mend "$port"
    for naa in "$NAA" "$NAA_1"; do within 150 paths "$naa" 2; done
    progress
done

step sessions of one portal are kicked, over and over
kick() {
    administrator session list --json | tr -d ' ",' | awk -F: -v portal="$1" '$1 == "id" { id = $2 } $1 == "portal" && $2 ":" $3 == portal { print id }' > /tmp/kicked
    for id in $(cat /tmp/kicked); do administrator session kick "$id" > /dev/null; done
}
for _ in 1 2 3; do
    kick "$portal"
    [ -s /tmp/kicked ] || fail "no session to kick"
    for naa in "$NAA" "$NAA_1"; do within 150 paths "$naa" 2; done
done
progress

step stop, and look at what is left
touch /tmp/stop
wait $load_ext4 $load_xfs
working
echo "$(wc -l < /tmp/rounds-ext4) rounds on ext4, $(wc -l < /tmp/rounds-xfs) on xfs"
md5sum -c /tmp/sums || fail "a file differs"
umount /mnt/ext4 /mnt/xfs
e2fsck -fn "$map" || fail "e2fsck finds errors"
xfs_repair -n "$map_1" > /tmp/xfs 2>&1 || { cat /tmp/xfs; fail "xfs_repair finds errors"; }
maps=$(basename "$(readlink -f "$map")")'|'$(basename "$(readlink -f "$map_1")")
unseen "dev ($maps),"'|EXT4-fs (error|warning)|XFS.*([Ee]rror|[Cc]orrupt|[Ss]hutdown)|JBD2'
for name in "3$NAA" "3$NAA_1"; do release "$name"; done
iscsiadm -m node --logoutall=all
[ -z "$(ls /sys/class/iscsi_session)" ] || fail "sessions are left"
echo "paths: all steps passed"
