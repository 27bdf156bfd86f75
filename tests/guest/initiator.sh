# What a virtualization host does with two LUNs, step by step; runs as root in the guest.
# Wants: TARGET (open) and NAA, the LUN's name as 32 hex digits; CHAP_TARGET, CHAP_NAA, CHAP_USER, CHAP_SECRET.
# PHASE=write makes the file systems and fills them, PHASE=verify finds them as an earlier guest left them.
step discovery
iscsiadm -m discovery -t sendtargets -p "$portal" | tee /tmp/found
grep -qx "$portal,1 $TARGET" /tmp/found || fail "$TARGET is not announced at $portal in portal group 1"
grep -qx "$portal,1 $CHAP_TARGET" /tmp/found || fail "$CHAP_TARGET is not announced at $portal in portal group 1"

step login without authentication
login "$TARGET"
appears "/dev/disk/by-id/wwn-0x$NAA"
appears "/dev/disk/by-id/scsi-3$NAA"
disk=$(readlink -f "/dev/disk/by-id/wwn-0x$NAA")
sg_inq "$disk"
sg_vpd --page=di "$disk"
lsblk -o NAME,SIZE,LOG-SEC,PHY-SEC,DISC-GRAN,DISC-MAX,ROTA "$disk"
[ "$(blockdev --getss "$disk")/$(blockdev --getpbsz "$disk")" = "$SECTORS" ] || fail "sector sizes are not $SECTORS"
[ "$(cat "/sys/block/${disk#/dev/}/queue/discard_max_bytes")" -gt 0 ] || fail "no discard"

step a second session makes a second path of one multipath map
session=$(iscsiadm -m session | sed -n "s/^tcp: \[\([0-9]*\)\].*$TARGET .*/\1/p")
iscsiadm -m session -r "$session" --op new
printf 'defaults {\n find_multipaths no\n user_friendly_names no\n polling_interval 2\n}\n' > /etc/multipath.conf
multipathd
udevadm settle
map=/dev/mapper/3$NAA
appears "$map"
for _ in $(seq 50); do
    paths=$(multipath -ll "3$NAA" | grep -c 'active ready running' || true)
    [ "$paths" -ne 2 ] || break
    sleep 0.5
done
multipath -ll
[ "$paths" -eq 2 ] || fail "$paths active paths in the multipath map instead of 2"

mkdir -p /mnt/ext4 /mnt/xfs
if [ "$PHASE" = write ]; then
    step ext4 on the multipath map, fio with verify, fstrim
    mkfs.ext4 -q -F "$map"
    mount "$map" /mnt/ext4
    fio --name=verify --filename=/mnt/ext4/fio --size=24M --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --minimal > /tmp/fio || { cat /tmp/fio; fail fio; }
    mkdir /mnt/ext4/many
    for n in $(seq 200); do echo "file $n" > "/mnt/ext4/many/$n"; done
    dd if=/dev/urandom of=/mnt/ext4/random bs=1M count=8 2> /dev/null
    dd if=/dev/urandom of=/mnt/ext4/gone bs=1M count=8 2> /dev/null
    sync
    rm /mnt/ext4/gone
    fstrim -v /mnt/ext4
    (cd /mnt/ext4 && find . -type f -exec md5sum {} + | sort > /tmp/sums && cp /tmp/sums sums)
    umount /mnt/ext4
fi

step log out, log in again, everything is there
release "3$NAA"
logout "$TARGET"
[ ! -e "/dev/disk/by-id/wwn-0x$NAA" ] || fail "the disk is still there after the logout"
login "$TARGET"
appears "$map"
e2fsck -fn "$map" || fail "e2fsck finds errors"
mount "$map" /mnt/ext4
(cd /mnt/ext4 && md5sum -c sums > /tmp/sums.out) || { grep -v OK /tmp/sums.out; fail "files differ"; }
echo "$(wc -l < /tmp/sums.out) files are equal"
umount /mnt/ext4

# A refused login is a connection error too, so this is the place to look for others.
unseen 'detected conn error'
step CHAP: refused without a secret, and with a wrong one
exits 24 node "$CHAP_TARGET" --login
node "$CHAP_TARGET" --op update -n node.session.auth.authmethod -v CHAP
node "$CHAP_TARGET" --op update -n node.session.auth.chap_algs -v SHA3-256,SHA256
node "$CHAP_TARGET" --op update -n node.session.auth.username -v "$CHAP_USER"
node "$CHAP_TARGET" --op update -n node.session.auth.password -v "wrong$CHAP_SECRET"
exits 24 node "$CHAP_TARGET" --login
step CHAP: admitted with the right one, header and data digests on
node "$CHAP_TARGET" --op update -n node.session.auth.password -v "$CHAP_SECRET"
node "$CHAP_TARGET" --op update -n 'node.conn[0].iscsi.HeaderDigest' -v CRC32C
node "$CHAP_TARGET" --op update -n 'node.conn[0].iscsi.DataDigest' -v CRC32C
login "$CHAP_TARGET"
connection=/sys/class/iscsi_connection/connection$(iscsiadm -m session | sed -n "s/^tcp: \[\([0-9]*\)\].*$CHAP_TARGET .*/\1/p"):0
[ "$(cat "$connection/header_digest")$(cat "$connection/data_digest")" = 11 ] || fail "no digests were negotiated"
map=/dev/mapper/3$CHAP_NAA
appears "$map"
if [ "$PHASE" = write ]; then
    step xfs
    mkfs.xfs -q -f "$map"
    mount "$map" /mnt/xfs
    dd if=/dev/urandom of=/mnt/xfs/random bs=1M count=16 2> /dev/null
    (cd /mnt/xfs && md5sum random > sums)
    umount /mnt/xfs
    release "3$CHAP_NAA"
    logout "$CHAP_TARGET"
    login "$CHAP_TARGET"
    appears "$map"
fi
xfs_repair -n "$map" > /tmp/xfs 2>&1 || { cat /tmp/xfs; fail "xfs_repair finds errors"; }
mount "$map" /mnt/xfs
(cd /mnt/xfs && md5sum -c sums) || fail "files differ"
umount /mnt/xfs

if [ "$PHASE" = verify ]; then
    step discard and write-zeroes on the whole disk
    blkdiscard -f "$map"
    zeros "$map" 33554432
    dd if=/dev/urandom of="$map" bs=1M count=4 oflag=direct 2> /dev/null
    blkdiscard -f -z -o 1048576 -l 2097152 "$map"
    dd if="$map" of=/tmp/hole bs=1M skip=1 count=2 iflag=direct 2> /dev/null
    zeros /tmp/hole 2097152
fi

step log out
for name in "3$NAA" "3$CHAP_NAA"; do release "$name"; done
iscsiadm -m node --logoutall=all
[ -z "$(ls /sys/class/iscsi_session)" ] || fail "sessions are left"
unseen 'I/O error|Sense Key|session recovery timed out|aborted|reset success'
echo "initiator: all steps passed ($PHASE)"
