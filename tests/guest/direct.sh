# A virtual machine with three disks of QEMU's own iSCSI driver: passed through as scsi-block and as scsi-generic, and behind
# QEMU's own disk.
# Wants: NAA_BLOCK and NAA_GENERIC, the names of the LUNs that are passed through.
# PHASE=write makes the file systems and fills them, PHASE=verify finds them after a reboot.
disk_of() { echo "/dev/$(ls "/sys/class/scsi_device/$(ls /sys/class/scsi_device | grep ":0:$1:0$")/device/block")"; }
block=$(disk_of 0) generic=$(disk_of 1) emulated=$(disk_of 2)
sg_of() { echo "/dev/$(ls "/sys/block/${1#/dev/}/device/scsi_generic")"; }
mkdir -p /mnt/block /mnt/generic /mnt/emulated

step INQUIRY is passed through
for one in "$block $NAA_BLOCK" "$generic $NAA_GENERIC"; do
    set -- $one
    says 0 'Vendor identification: LUNETTE' sg_inq "$1"
    says 0 "0x$2" sg_vpd --page=di "$1"
    appears "/dev/disk/by-id/wwn-0x$2"
    says 0 'LBPU\): 1' sg_vpd --page=lbpv "$1"
    says 0 'lbpme=1, lbprz=1' sg_readcap --long "$1"
done
says 0 'Vendor identification: QEMU' sg_inq "$emulated"
for disk in "$block" "$generic" "$emulated"; do
    [ "$(cat "/sys/block/${disk#/dev/}/queue/discard_max_bytes")" -gt 0 ] || fail "no discard on $disk"
done

if [ "$PHASE" = write ]; then
    mebibyte=1048576
    for disk in "$block" "$generic" "$emulated"; do
        step "discards and zeros of $disk give space back"
        before=$(used)
        dd if=/dev/urandom of="$disk" bs=1M count=12 oflag=direct 2> /dev/null
        # Units that were freed before may come back while this counts.
        [ "$(used)" -ge $((before + 3 * 11 * mebibyte)) ] || fail "12 MiB take $(($(used) - before)) bytes on three nodes"
        blkdiscard -f -o 0 -l $((4 * mebibyte)) "$disk"
        within 150 used_below $((before + 3 * 8 * mebibyte + 1))
        # WRITE SAME, without UNMAP where the disk leaves the choice.
        blkdiscard -f -z -o $((4 * mebibyte)) -l $((4 * mebibyte)) "$disk"
        within 150 used_below $((before + 3 * 4 * mebibyte + 1))
        fallocate -p -o $((8 * mebibyte)) -l $((4 * mebibyte)) "$disk"
        within 150 used_below $((before + 1))
        dd if="$disk" of=/tmp/read bs=1M count=12 iflag=direct 2> /dev/null
        zeros /tmp/read $((12 * mebibyte))
    done
    for name in block generic emulated; do
        eval "disk=\$$name"
        step "ext4 and fstrim on $disk"
        mkfs.ext4 -q -F "$disk"
        mount "$disk" /mnt/$name
        dd if=/dev/urandom of=/mnt/$name/gone bs=1M count=8 2> /dev/null
        dd if=/dev/urandom of=/mnt/$name/stays bs=1M count=4 2> /dev/null
        (cd /mnt/$name && md5sum stays > sums)
        sync
        full=$(used)
        rm /mnt/$name/gone
        sync
        fstrim -v /mnt/$name
        within 150 used_below $((full - 3 * 7 * mebibyte))
        umount /mnt/$name
    done
    step reservations of a disk that is passed through
    sg=$(sg_of "$generic")
    exits 0 sg_persist --no-inquiry --out --register --param-sark=abc "$sg"
    exits 0 sg_persist --no-inquiry --out --reserve --param-rk=abc --prout-type=5 "$sg"
    says 0 'Key=0xabc' sg_persist --no-inquiry --in --read-reservation "$sg"
    exits 0 sg_persist --no-inquiry --out --clear --param-rk=abc "$sg"
else
    for name in block generic emulated; do
        eval "disk=\$$name"
        step "$disk is as it was left"
        e2fsck -fn "$disk" || fail "e2fsck finds errors"
        mount "$disk" /mnt/$name
        (cd /mnt/$name && md5sum -c sums) || fail "files differ"
        umount /mnt/$name
    done
fi
unseen 'I/O error|Sense Key|reset success|aborted|EXT4-fs (error|warning)'
echo "direct: all steps passed ($PHASE)"
