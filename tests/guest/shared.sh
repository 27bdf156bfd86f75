# One of two hosts with one volume group on a shared LUN, as oVirt's storage domains are: no lock manager, each logical volume
# active on one host at a time, all changes of metadata by one host, which the other sees.
# Wants: HOST, a or b; TARGET; NAA.
disk=/dev/disk/by-id/wwn-0x$NAA
size=$((8 * 1048576))

step "host $HOST logs in"
# Two hosts are two initiators.
iscsiadm -k 0
within 150 sh -c '! pidof iscsid'
echo "InitiatorName=iqn.2026-11.io.lunette.tests:$HOST" > /etc/iscsi/initiatorname.iscsi
iscsid
iscsiadm -m discovery -t sendtargets -p "$portal" > /tmp/found
login "$TARGET"
appears "$disk"
meet in

# content HOST ROUND: what a host writes to a volume: numbers that nothing else has.
content() {
    [ "$1" = a ] && first=$(($2 * 100000000)) || first=$(($2 * 100000000 + 50000000))
    seq $first $((first + 2000000)) | head -c $size
}
write() { content "$HOST" "$2" | dd of="/dev/shared/$1" bs=1M iflag=fullblock oflag=direct 2> /dev/null; }
# verify VOLUME HOST ROUND
verify() {
    dd if="/dev/shared/$1" of=/tmp/read bs=1M count=8 iflag=direct 2> /dev/null
    content "$2" "$3" | cmp - /tmp/read || fail "$1 is not what $2 wrote"
}
volumes() { lvs --noheadings -o lv_name,lv_size --units b --nosuffix shared | awk '{ print $1 "=" $2 }' | sort | tr '\n' ' '; }
sees() { [ "$(volumes)" = "$1" ] || fail "volumes are '$(volumes)', not '$1'"; }
stress() {
    fio --name=stress --filename="/dev/shared/$1" --size=$size --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=libaio --iodepth=8 \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --minimal > /tmp/fio || { cat /tmp/fio; fail "fio"; }
}

step a group that one host makes is there for the other
if [ "$HOST" = a ]; then
    pvcreate -q "$disk"
    vgcreate -q shared "$disk"
    for name in one two; do lvcreate -q -an -Zn -Wn -n $name -L ${size}b shared; done
fi
meet made
says 0 ' shared +1 +2 ' vgs shared
sees "one=$size two=$size "
[ "$HOST" = a ] && mine=one theirs=two || mine=two theirs=one
lvchange -ay "shared/$mine"
meet active
stress $mine
write $mine 1
verify $mine "$HOST" 1
meet written

step "the other host's volume, after it has let go of it"
lvchange -an "shared/$mine"
meet let-go
lvchange -ay "shared/$theirs"
[ "$HOST" = a ] && other=b || other=a
verify $theirs $other 1
write $theirs 2
lvchange -an "shared/$theirs"
meet taken-back
lvchange -ay "shared/$mine"
verify $mine $other 2

step changes of metadata by one host, volumes in use at the other
meet before-changes
if [ "$HOST" = a ]; then
    # Two is active at b, so a only writes the metadata.
    lvextend -q -L +${size}b shared/two
    lvcreate -q -an -Zn -Wn -n three -L ${size}b shared
fi
meet changed
sees "one=$size three=$size two=$((2 * size)) "
if [ "$HOST" = b ]; then
    [ "$(blockdev --getsize64 /dev/shared/two)" -eq $size ] || fail "two has grown before the refresh"
    lvchange --refresh shared/two
    [ "$(blockdev --getsize64 /dev/shared/two)" -eq $((2 * size)) ] || fail "two has not grown"
    verify two a 2
    content b 3 | dd of=/dev/shared/two bs=1M seek=8 iflag=fullblock oflag=direct 2> /dev/null
    lvchange -ay shared/three
    write three 4
    lvchange -an shared/three
    lvchange -an shared/two
fi
meet extended
if [ "$HOST" = a ]; then
    lvchange -ay shared/two shared/three
    verify three b 4
    dd if=/dev/shared/two of=/tmp/read bs=1M skip=8 iflag=direct 2> /dev/null
    content b 3 | cmp - /tmp/read || fail "the end of two is not what b wrote"
    lvchange -an shared/two shared/three
    lvremove -q -f shared/three
    lvrename -q shared two renamed
fi
meet removed
sees "one=$size renamed=$((2 * size)) "
exits 0 vgck shared
exits 0 pvck "$disk" > /dev/null

step log out
vgchange -q -an shared
udevadm settle
logout "$TARGET"
unseen 'I/O error|Sense Key|session recovery timed out|aborted|reset success|detected conn error'
echo "shared: all steps passed ($HOST)"
