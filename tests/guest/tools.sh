# What an administrator's SCSI tools make of a LUN, feature by feature, as SPC-4, SBC-3 and SAM-5 have it.
# Wants: TARGET with LUN 0, of 64 MiB, and LUN 1, of the same size, LUN 2, 4Kn, LUN 3, write protected, and LUN 4, of 3 TiB with a
# write cache; NAA, the name of LUN 0; DISCOVERY and MUTUAL, the secrets in the administrator's files discovery and mutual.

# What Linux logs between a login and a disk that is ready: these lines and no others.
ordinary='scsi host[0-9]+: iSCSI Initiator over TCP/IP
Direct-Access     LUNETTE  VOLUME           [^ ]+ +PQ: 0 ANSI: 6
alua: supports implicit TPGS
alua: device naa\.[0-9a-f]{32} port group [0-9a-f]+ rel port [0-9a-f]+
alua: transition timeout set to [0-9]+ seconds
alua: port group [0-9a-f]+ state A non-preferred supports TolUSnA
Attached scsi generic sg[0-9]+ type 0
Power-on or device reset occurred
\[sd[a-z]+\] [0-9]+ (512|4096)-byte logical blocks: \(.*\)
\[sd[a-z]+\] 4096-byte physical blocks
\[sd[a-z]+\] Write Protect is (off|on)
\[sd[a-z]+\] Mode Sense: ([0-9a-f]{2} ?){4}
\[sd[a-z]+\] Write cache: (disabled|enabled), read cache: enabled, supports DPO and FUA
\[sd[a-z]+\] Preferred minimum I/O size 4096 bytes
\[sd[a-z]+\] Optimal transfer size 1048576 bytes
\[sd[a-z]+\] Attached SCSI disk'

step what Linux logs at attach
iscsiadm -m discovery -t sendtargets -p "$portal" > /tmp/found
dmesg --clear
login "$TARGET"
appears "/dev/disk/by-id/wwn-0x$NAA"
udevadm settle
dmesg --notime > /tmp/attached
sed 's/^/attach: /' /tmp/attached
echo "$ordinary" > /tmp/ordinary
sed -E 's/^(scsi|sd) [0-9]+:0:0:[0-9]+: //' /tmp/attached | grep -Evx -f /tmp/ordinary > /tmp/unusual || true
[ ! -s /tmp/unusual ] || { cat /tmp/unusual; fail "Linux logs more than it does for any disk"; }
[ "$(grep -c 'Attached SCSI disk' /tmp/attached)" -eq 5 ] || fail "not five disks"

step a second session, of another initiator
iscsiadm -m iface -I other --op new
for setting in initiatorname=iqn.2026-11.io.lunette.tests:other transport_name=tcp; do
    iscsiadm -m iface -I other --op update -n "iface.${setting%%=*}" -v "${setting#*=}"
done
node "$TARGET" -I other --op new
node "$TARGET" -I other --login
udevadm settle
a=$(unit default 0 scsi_generic) other_lun=$(unit default 1 scsi_generic)
b=$(unit other 0 scsi_generic) b_other_lun=$(unit other 1 scsi_generic)
disk=$(unit default 0 block)

step a 4Kn disk, a write protected one, a large one with a write cache
fourk=$(unit default 2 block) protected=$(unit default 3 block) large=$(unit default 4 block)
[ "$(blockdev --getss "$fourk")/$(blockdev --getpbsz "$fourk")/$(blockdev --getsize64 "$fourk")" = 4096/4096/67108864 ] || fail "not 4Kn"
grep -q "\[${fourk#/dev/}\] 16384 4096-byte logical blocks" /tmp/attached || fail "no 4096-byte blocks"
[ "$(blockdev --getro "$protected")" -eq 1 ] || fail "$protected is not read-only"
grep -q "\[${protected#/dev/}\] Write Protect is on" /tmp/attached || fail "no write protection"
sg_protected=$(unit default 3 scsi_generic)
exits 7 sg_write_same --10 --lba=0 --num=1 "$sg_protected"
exits 7 sg_unmap --force --lba=0 --num=8 "$sg_protected"
exits 0 sg_verify --lba=0 --count=8 "$sg_protected"
[ "$(blockdev --getsize64 "$large")" -eq 3298534883328 ] || fail "not 3 TiB"
grep -q "\[${large#/dev/}\] Write cache: enabled" /tmp/attached || fail "no write cache"
says 0 'Last LBA=6442450943 ' sg_readcap "$large"
dd if=/dev/urandom of=/tmp/random bs=64K count=1 2> /dev/null
for end in "$fourk $((67108864 / 65536 - 1))" "$large $((3298534883328 / 65536 - 1))"; do
    dd if=/tmp/random of="${end% *}" bs=64K seek="${end#* }" oflag=direct conv=fsync 2> /dev/null
    dd if="${end% *}" of=/tmp/out bs=64K skip="${end#* }" iflag=direct 2> /dev/null
    cmp /tmp/random /tmp/out || fail "the end of $end"
done

step helpers
block=512
pattern() { head -c $(($1 * block)) /dev/zero | tr '\0' "$2"; }
pattern 1 A > /tmp/A; pattern 1 B > /tmp/B; pattern 1 '\0' > /tmp/0
# put LBA BLOCKS LETTER; holds LBA BLOCKS LETTER [DEVICE]
put() { pattern "$2" "$3" > /tmp/in; sg_dd if=/tmp/in of="$a" bs=$block seek="$1" count="$2" 2> /tmp/said || { cat /tmp/said; fail "write at $1"; }; }
holds() {
    rm -f /tmp/out
    sg_dd if="${4:-$a}" of=/tmp/out bs=$block skip="$1" count="$2" 2> /tmp/said || { cat /tmp/said; fail "read at $1"; }
    pattern "$2" "$3" | cmp - /tmp/out || fail "$2 blocks at $1 are not '$3'"
}
# device_of SG: its host:channel:target:lun.
device_of() { basename "$(readlink "/sys/class/scsi_generic/${1#/dev/}/device")"; }
ready() { sg_turs "$1"; }
# Exit statuses of sg3_utils: 5 illegal request, 6 unit attention, 7 data protect, 9 invalid operation code, 14 miscompare,
# 22 LBA out of range, 24 reservation conflict, 2 not ready.
for unit in "$a" "$b" "$other_lun" "$b_other_lun"; do exits 0 ready "$unit"; done

step sg_inq, sg_vpd, sg_luns, sg_turs, sg_readcap
says 0 'version=0x06  \[SPC-4\]' sg_inq "$a"
also 'PDT=0' 'RMB=0' 'Resp_data_format=2' 'CmdQue=1' 'TPGS=1' '3PC=1' 'Vendor identification: LUNETTE' 'Unit serial number: [0-9a-f]+'
says 0 'SPC-4' sg_inq --descriptors "$a"
also 'SBC-3' 'iSCSI' 'SAM-5'
says 0 "0x$NAA" sg_vpd --all "$a"
also 'Unit serial number: [0-9a-f]+' 'vendor id: LUNETTE' 'Relative target port: 0x1$' 'Target port group: 0x1$' "$TARGET,t,0x0001"
also 'Supported VPD pages' 'Mode page policy' 'Third party copy' 'Extended copy\(LID1\)' 'Unmap command supported \(LBPU\): 1'
also 'Logical block provisioning read zeros \(LBPRZ\): 1' 'Maximum compare and write length: [1-9]' 'Maximum unmap LBA count: [1-9]'
also 'Maximum unmap block descriptor count: [1-9]' 'Optimal unmap granularity: 128 blocks' 'Non-rotating medium' 'thin provisioned'
never 'malformed|unable|truncat|reserved|error|expected|overflow|too short'
for page in sv sn di ei mpp tpc bl bdc lbpv; do exits 0 sg_vpd --page=$page "$a" > /dev/null; done
exits 5 sg_vpd --force --page=0xb3 "$a"
says 0 '^    0001000000000000' sg_luns "$a"
also 'Lun list length = 40' '^    0002000000000000' '^    0003000000000000' '^    0004000000000000' '^    0000000000000000'
says 0 '^    c101000000000000' sg_luns --select=2 "$a"
exits 0 sg_turs --num=20 "$a"
says 0 'Last LBA=131071 ' sg_readcap "$a"
says 0 'Last LBA=131071 ' sg_readcap --long "$a"
also 'lbpme=1, lbprz=1' 'Logical block length=512 bytes' 'physical block length=4096 bytes' 'Lowest aligned LBA=0' 'prot_en=0'

step sg_opcodes
says 0 'Compare and write' sg_opcodes "$a"
also '^ 00 .*Test Unit Ready' '^ 42 .*Unmap' '^ 41 .*Write same\(10\)' '^ 93 .*Write same\(16\)' '^ 9e +12 .*Get LBA status' '^ 8b .*Orwrite\(16\)'
also '^ 9c .*Write atomic\(16\)' '^ 48 +1 .*Sanitize, overwrite' '^ 83 +0 .*Extended copy\(LID1\)' '^ 5f +7 .*register and move' '^ a3 +a '
says 0 'Test Unit Ready' sg_opcodes --rctd "$a"
also 'Recommended' '^ 28 +10 +(-|[0-9]+) +[1-9][0-9]* +Read\(10\)'
never '^ 28 +10 +[0-9-]+ +- '
says 0 'Command is supported \[conforming to SCSI standard\]' sg_opcodes --opcode=0x89 --rctd "$a"
also 'Compare and write' 'timeout' 'Usage data: 89 f8 ff ff ff ff ff ff ff ff 00 00 00 ff 00 04'
says 0 'conforming' sg_opcodes --opcode=0x5f,5 "$a"
also '[Pp]reempt and abort'
says 0 'Command is NOT supported' sg_opcodes --opcode=0x04 "$a"
says 0 'NOT supported' sg_opcodes --opcode=0x5f,9 "$a"
# The service action of a command that has none, and none for one that has (SPC-4 6.35).
exits 5 sg_opcodes --opcode=0x28,1 "$a"
exits 5 sg_opcodes --opcode=0x5e "$a"
says 0 'Logical unit reset' sg_opcodes --tmf "$a"
also 'Abort task$' 'Abort task set' 'Clear task set'
exits 0 sg_opcodes --tmf --repd "$a" > /dev/null

step sg_rtpg
says 0 'active/optimized' sg_rtpg --decode "$a"
also 'target port group id : 0x1 ' 'AO_SUP : 1' 'target port count : 0*1$'
says 0 'active/optimized' sg_rtpg --decode --extended "$a"
also 'Implicit transition time: [0-9]+'
# Implicit only: nobody sets a state. (The tool goes on after the refusal, to show the groups.)
says 0 'Set Target Port Groups: Illegal request, Invalid opcode' sg_stpg "$a"

step sg_modes, sdparm
says 0 'Caching' sg_modes --all "$a"
also 'WP=0' 'DpoFua=1' 'Control' 'Informational exceptions'
exits 0 sg_modes --six --page=0x3f "$a" > /dev/null
exits 0 sg_modes --page=8 --control=1 "$a" > /dev/null
exits 0 sg_modes --page=8 --control=2 "$a" > /dev/null
exits 5 sg_modes --page=0x05 "$a"
# Saved values are not there, on which sdparm insists in its exit status.
says 5 'WCE +0 +\[cha: y' sdparm --get=WCE "$a"
dmesg --clear
exits 0 sdparm --quiet --set=WCE=1 "$a"
says 5 'WCE +1 +\[cha: y' sdparm --get=WCE "$b"
exits 0 sdparm --quiet --set=WCE=0 "$a"
exits 0 ready "$b"
exits 0 ready "$a"
# MODE PARAMETERS CHANGED, to the other one, once for each change (SPC-4 5.14). Linux repeats a command that meets it.
[ "$(dmesg | grep -c "sd $(device_of "$b"): Mode parameters changed")/$(dmesg | grep -c 'Mode parameters changed')" = 2/2 ] || fail "$(dmesg)"
exits 0 sdparm --quiet --set=SWP=1 "$a"
exits 7 sg_write_same --10 --lba=0 --num=1 "$a"
holds 0 1 '\0'
says 0 'WP=1' sg_modes --page=8 "$a"
exits 0 sdparm --quiet --set=SWP=0 "$a"
exits 0 sg_write_same --10 --lba=0 --num=1 "$a"
exits 0 ready "$b"

step sg_logs
says 0 'Informational Exceptions' sg_logs --all "$a"
also '0x19 +General Statistics' 'number of read commands' 'IE asc = 0x0'
never 'unable'
exits 0 sg_logs --All "$a" > /dev/null
exits 5 sg_logs --page=0x0d "$a"

step sg_requests, sg_start, sg_senddiag, sg_sync, sg_seek
says 0 'No Sense' sg_requests -v "$a"
exits 0 sg_requests --desc "$a" > /dev/null
exits 0 sg_start --start "$a"
exits 0 sg_senddiag --test "$a"
exits 0 sg_sync "$a"
exits 0 sg_sync --16 --lba=8 --count=100 "$a"
exits 0 sg_sync --immed "$a"
# CONDITION MET (SBC-3 5.9), or GOOD where the cache cannot take all of it.
sg_seek --pre-fetch --lba=0 --num-blocks=8 "$a" || [ $? -eq 25 ] || fail "PRE-FETCH"

step sg_compare_and_write
put 1000 4 A
cat /tmp/A /tmp/B > /tmp/AB
exits 0 sg_compare_and_write --in=/tmp/AB --lba=1001 "$a"
holds 1001 1 B; holds 1000 1 A; holds 1002 1 A
says 14 'Miscompare at byte offset: 0 ' sg_compare_and_write --in=/tmp/AB --lba=1001 "$a"
(head -c 300 /tmp/B; head -c 212 /tmp/A; cat /tmp/0) > /tmp/mixed
says 14 'Miscompare at byte offset: 300 ' sg_compare_and_write --in=/tmp/mixed --lba=1001 "$b"
holds 1001 1 B
exits 0 sg_compare_and_write --fua --in=/tmp/B --inw=/tmp/A --lba=1001 "$b"
holds 1000 4 A
exits 22 sg_compare_and_write --in=/tmp/AB --lba=131072 "$a"
pattern 256 A > /tmp/many
exits 5 sg_compare_and_write --in=/tmp/many --lba=0 --num=128 --xferlen=131072 "$a"

step sg_unmap, sg_get_lba_status
before=$(used)
put 2048 1024 A
[ "$(used)" -gt "$before" ] || fail "what is written takes no space"
says 0 ' LBA: 0x0*800  blocks: +1024  mapped' sg_get_lba_status --maxlen=4096 --lba=2048 "$a"
exits 0 sg_unmap --force --lba=2048 --num=128 "$a"
says 0 ' LBA: 0x0*800  blocks: +128  deallocated' sg_get_lba_status --maxlen=4096 --lba=2048 "$a"
also ' LBA: 0x0*880  blocks: +896  mapped'
says 0 ' LBA: 0x0*850  blocks: +48  deallocated' sg_get_lba_status --maxlen=4096 --lba=2128 "$a"
holds 2048 128 '\0'; holds 2176 896 A
exits 0 sg_unmap --force --lba=2304,2560,2816 --num=128,128,128 "$a"
holds 2304 128 '\0'; holds 2432 128 A; holds 2560 128 '\0'; holds 2688 128 A; holds 2816 128 '\0'; holds 2944 128 A
# Less than the granularity reads as zeros all the same: LBPRZ.
exits 0 sg_unmap --force --lba=2177 --num=3 "$a"
holds 2176 1 A; holds 2177 3 '\0'; holds 2180 124 A
exits 0 sg_unmap --force --lba=0 --num=0 "$a"
exits 22 sg_unmap --force --lba=131071 --num=2 "$a"
exits 5 sg_unmap --force --anchor --lba=2048 --num=128 "$a"
exits 22 sg_get_lba_status --lba=131072 "$a"
exits 0 sg_unmap --force --lba=2048 --num=1024 "$a"
holds 2048 1024 '\0'
within 150 used_below $((before + 1))

step sg_write_same
exits 0 sg_write_same --10 --in=/tmp/B --lba=4096 --num=256 "$a"
holds 4096 256 B; holds 4352 1 '\0'; holds 4095 1 '\0'
exits 0 sg_write_same --16 --in=/tmp/A --lba=4096 --num=1 "$a"
holds 4096 1 A; holds 4097 255 B
exits 0 sg_write_same --10 --unmap --in=/tmp/0 --lba=4096 --num=128 "$a"
holds 4096 128 '\0'; holds 4224 128 B
exits 0 sg_write_same --16 --unmap --in=/tmp/0 --lba=4224 --num=64 "$a"
holds 4224 64 '\0'; holds 4288 64 B
exits 0 sg_write_same --16 --ndob --lba=4288 --num=32 "$a"
holds 4288 32 '\0'; holds 4320 32 B
exits 0 sg_write_same --16 --ndob --unmap --lba=4224 --num=128 "$a"
says 0 ' LBA: 0x0*1000  blocks: +[0-9]+  deallocated' sg_get_lba_status --lba=4096 "$a"
# Data other than zeros stays data also with UNMAP: LBPRZ promises zeros of what is not mapped (SBC-3 5.45).
exits 0 sg_write_same --16 --unmap --in=/tmp/A --lba=4096 --num=128 "$a"
holds 4096 128 A
# WSNZ: no number of blocks is no number (SBC-3 6.5.3).
exits 5 sg_write_same --16 --lba=0 --num=0 "$a"
exits 5 sg_write_same --16 --lba=0 --num=65536 "$a"
exits 22 sg_write_same --16 --lba=131071 --num=2 "$a"
exits 9 sg_write_same --32 --lba=0 --num=1 "$a"
exits 5 sg_write_same --16 --anchor --unmap --lba=4096 --num=128 "$a"

step sg_verify, sg_write_verify, sg_write_x, sg_dd
put 5000 16 A
exits 0 sg_verify --lba=5000 --count=16 "$a"
pattern 16 A > /tmp/in
exits 0 sg_verify --ndo=8192 --in=/tmp/in --lba=5000 --count=16 "$a"
exits 0 sg_verify --16 --ndo=8192 --in=/tmp/in --lba=5000 --count=16 "$a"
exits 14 sg_verify --ndo=8192 --in=/tmp/in --lba=5001 --count=16 "$a"
exits 14 sg_verify --16 --ndo=8192 --in=/tmp/in --lba=4999 --count=16 "$a"
exits 22 sg_verify --lba=131071 --count=2 "$a"
exits 0 sg_write_verify --in=/tmp/B --lba=5000 --num=1 "$a"
exits 0 sg_write_verify --16 --bytchk=1 --in=/tmp/B --lba=5001 --num=1 "$a"
holds 5000 2 B; holds 5002 14 A
exits 0 sg_write_x --normal --16 --in=/tmp/in --lba=5000 --num=8 "$a"
holds 5000 16 A
# 41h or 42h is 43h.
exits 0 sg_write_x --or --16 --in=/tmp/B --lba=5000 --num=1 "$a"
holds 5000 1 C; holds 5001 1 A
exits 0 sg_write_x --same=0 --16 --in=/tmp/B --lba=5000 --num=4 "$a"
holds 5000 4 B; holds 5004 4 A
exits 0 sg_write_x --same=1 --16 --lba=5000 --num=4 "$a"
holds 5000 4 '\0'
exits 0 sg_write_x --atomic=0 --16 --in=/tmp/in --lba=5000 --num=16 "$a"
holds 5000 16 A
# Above MAXIMUM ATOMIC TRANSFER LENGTH, off its alignment, within a boundary that there is not (SBC-4).
pattern 2304 A > /tmp/too-many
exits 5 sg_write_x --atomic=0 --16 --in=/tmp/too-many --lba=4096 --num=2304 "$a"
exits 5 sg_write_x --atomic=0 --16 --in=/tmp/in --lba=5001 --num=8 "$a"
exits 5 sg_write_x --atomic=8 --16 --in=/tmp/in --lba=5000 --num=16 "$a"
holds 5000 16 A
exits 9 sg_write_x --stream=1 --16 --in=/tmp/in --lba=5000 --num=8 "$a"
exits 0 sg_dd if=/tmp/in of="$a" bs=512 seek=6000 oflag=fua,dpo cdbsz=16 count=16 > /dev/null 2>&1
exits 0 sg_dd if="$a" of=/tmp/out bs=512 skip=6000 iflag=fua,dpo cdbsz=12 count=16 > /dev/null 2>&1
cmp -n 8192 /tmp/in /tmp/out || fail "$said"
exits 0 sg_dd if="$a" of=/tmp/out bs=512 skip=6000 cdbsz=6 count=16 > /dev/null 2>&1
cmp -n 8192 /tmp/in /tmp/out || fail "$said"

step sg_xcopy, sg_copy_results, ddpt
dd if=/dev/urandom of=/tmp/random bs=64K count=16 2> /dev/null
exits 0 sg_dd if=/tmp/random of="$a" bs=512 seek=8192 count=2048 > /dev/null 2>&1
says 0 'Maximum (CSCD|target) descriptor count|Maximum segment' sg_copy_results --params "$a"
exits 0 sg_xcopy if="$a" skip=8192 of="$other_lun" seek=100 count=2048 bs=512
exits 0 sg_dd if="$other_lun" of=/tmp/out bs=512 skip=100 count=2048 > /dev/null 2>&1
cmp -n 1048576 /tmp/random /tmp/out || fail "sg_xcopy between LUNs"
exits 0 sg_xcopy if="$other_lun" skip=100 of="$a" seek=16384 count=2048 bs=512 --on_src
exits 0 sg_dd if="$a" of=/tmp/out bs=512 skip=16384 count=2048 > /dev/null 2>&1
cmp -n 1048576 /tmp/random /tmp/out || fail "sg_xcopy by its source"
exits 0 ddpt if="$a" skip=8192 of="$a" seek=24577 bs=512 count=2048 iflag=xcopy > /tmp/said 2>&1
exits 0 sg_dd if="$a" of=/tmp/out bs=512 skip=24577 count=2048 > /dev/null 2>&1
cmp -n 1048576 /tmp/random /tmp/out || fail "ddpt within a LUN"

step sg_reset
exits 0 ready "$b"
exits 0 sg_reset --no-esc --device "$a"
# SAM-5 6.3: everybody learns of it, of that unit only.
says 6 'reset' sg_turs -v "$b"
exits 0 ready "$b"
exits 0 ready "$b_other_lun"
exits 0 sg_reset --no-esc --target "$a"
says 6 'reset' sg_turs -v "$b"
says 6 'reset' sg_turs -v "$b_other_lun"
for unit in "$a" "$b" "$other_lun" "$b_other_lun"; do sg_turs "$unit" > /dev/null 2>&1 || exits 0 ready "$unit"; done
holds 5000 16 A

step sg_persist
pr() { device=$1; shift; sg_persist --no-inquiry "$@" "$device"; }
out() { device=$1; shift; pr "$device" --out "$@"; }
says 0 'NO registered reservation keys' pr "$a" --in --read-keys
says 0 'Type Mask Valid\(TMV\): 1' pr "$a" --in --report-capabilities
also 'CRH\): 1' 'SIP_C\): 1' 'ATP_C\): 1' 'PTPL_C\): 1' 'Write Exclusive: 1' 'Exclusive Access, all registrants: 1'
# Not registered: no reservation (SPC-4 5.13.9).
exits 24 out "$a" --reserve --param-rk=abc --prout-type=1
exits 0 out "$a" --register --param-sark=abc
exits 24 out "$a" --register --param-rk=999 --param-sark=def
exits 0 out "$b" --register --param-sark=def
says 0 '2 registered reservation keys' pr "$b" --in --read-keys
also '^ +0xabc$' '^ +0xdef$'
exits 0 out "$a" --reserve --param-rk=abc --prout-type=1
exits 24 out "$b" --reserve --param-rk=def --prout-type=1
exits 24 sg_write_same --10 --lba=0 --num=1 "$b"
exits 0 sg_write_same --10 --lba=0 --num=1 "$a"
holds 0 1 '\0' "$b"
exits 24 sg_unmap --force --lba=0 --num=8 "$b"
exits 24 sg_compare_and_write --in=/tmp/AB --lba=0 "$b"
exits 24 sg_xcopy if="$b_other_lun" of="$b" count=8 bs=512
says 0 'Key=0xabc' pr "$b" --in --read-reservation
also 'LU_SCOPE' 'type: Write Exclusive$'
says 0 'Reservation holder' pr "$b" --in --read-full-status
also 'Key=0xabc' 'Key=0xdef' 'iqn\.2026-11\.io\.lunette\.tests:host,i,0x' 'iqn\.2026-11\.io\.lunette\.tests:other,i,0x' 'Relative port address: 0x1$'
# A release of another type is INVALID RELEASE, one by who does not hold it nothing (SPC-4 5.13.11.2).
exits 5 out "$a" --release --param-rk=abc --prout-type=3
exits 0 out "$b" --release --param-rk=def --prout-type=1
says 0 'Key=0xabc' pr "$b" --in --read-reservation
exits 0 out "$a" --release --param-rk=abc --prout-type=1
says 0 'NO reservation held' pr "$b" --in --read-reservation
# Registrants only: those who are registered write, and learn when it is released.
exits 0 out "$a" --reserve --param-rk=abc --prout-type=5
exits 0 sg_write_same --10 --lba=0 --num=1 "$b"
exits 0 out "$a" --release --param-rk=abc --prout-type=5
says 6 'Reservations released' sg_turs -v "$b"
# Preempted: out of the registrations, told once, shut out (SPC-4 5.13.11.5).
exits 0 out "$a" --reserve --param-rk=abc --prout-type=3
exits 24 sg_verify --lba=0 --count=1 "$b"
exits 0 out "$b" --preempt --param-rk=def --param-sark=abc --prout-type=3
says 6 'Registrations preempted' sg_turs -v "$a"
exits 24 sg_verify --lba=0 --count=1 "$a"
exits 24 out "$a" --reserve --param-rk=abc --prout-type=3
says 0 '1 registered reservation key ' pr "$a" --in --read-keys
says 0 'type: Exclusive Access$' pr "$a" --in --read-reservation
# Register and move: the reservation goes to the other initiator.
exits 0 out "$b" --register-move --param-rk=def --param-sark=123 --prout-type=3 --relative-target-port=1 --transport-id=iqn.2026-11.io.lunette.tests:host
says 0 'Key=0x123' pr "$a" --in --read-reservation
exits 0 sg_verify --lba=0 --count=1 "$a"
exits 24 sg_verify --lba=0 --count=1 "$b"
exits 0 out "$a" --preempt-abort --param-rk=123 --param-sark=def --prout-type=3
says 6 'preempted' sg_turs -v "$b"
exits 0 out "$b" --register-ignore --param-sark=456 --param-aptpl
says 0 'Persist Through Power Loss Active\(PTPL_A\): 1' pr "$a" --in --report-capabilities
exits 0 out "$a" --clear --param-rk=123
says 6 'Reservations preempted' sg_turs -v "$b"
says 0 'NO registered reservation keys' pr "$a" --in --read-keys
also 'PR generation=0x[1-9a-f]'
# Registers another port along with its own.
exits 0 out "$a" --register --param-sark=abc --transport-id=iqn.2026-11.io.lunette.tests:other
says 0 'tests:other' pr "$a" --in --read-full-status
also 'tests:host'
exits 0 out "$a" --clear --param-rk=abc
sg_turs "$b" > /dev/null 2>&1 || true
exits 0 out "$a" --register --param-alltgpt --param-sark=abc
says 0 'All target ports bit set' pr "$a" --in --read-full-status
exits 0 out "$a" --register --param-rk=abc --param-sark=0

step sg_sanitize
exits 0 sg_dd if=/tmp/random of="$other_lun" bs=512 seek=0 count=2048 > /dev/null 2>&1
exits 0 sg_sanitize --block --quick --wait "$other_lun" > /dev/null
exits 0 sg_dd if="$other_lun" of=/tmp/out bs=512 count=2048 > /dev/null 2>&1
zeros /tmp/out 1048576
printf Z > /tmp/Z
exits 0 sg_sanitize --overwrite --pattern=/tmp/Z --quick --early "$other_lun" > /dev/null
says 2 'sanitize in progress|[Ss]anitize' sg_turs -v "$b_other_lun"
says 0 'progress|Progress' sg_requests --progress --num=1 "$other_lun"
within 150 sg_turs "$other_lun"
holds 0 8 Z "$other_lun"; holds 131064 8 Z "$other_lun"
exits 5 sg_sanitize --crypto --quick --early "$other_lun" > /dev/null

step commands that are not there are refused as such
exits 9 sg_prevent --allow "$a"
exits 9 sg_read_long --lba=0 --xfer_len=520 "$a"
exits 9 sg_reassign --address=1 "$a"
exits 9 sg_rep_zones "$a"
exits 9 sg_read_buffer --length=4 "$a"
exits 5 sg_ident "$a"
exits 5 sg_timestamp "$a"
exits 5 sg_referrals "$a"
exits 5 sg_get_elem_status "$a"
exits 5 sg_stream_ctl "$a"

step discovery with CHAP
administrator target chap --discovery --user disco --secret-file discovery --mutual-user lunette --mutual-secret-file mutual
discoverydb() { iscsiadm -m discoverydb -t sendtargets -p "$portal" "$@"; }
set_discovery() { discoverydb --op update -n "$1" -v "$2"; }
discoverydb --op new
says 24 'authorization failure' discoverydb --discover
set_discovery discovery.sendtargets.auth.authmethod CHAP
set_discovery discovery.sendtargets.auth.username disco
set_discovery discovery.sendtargets.auth.password "wrong$DISCOVERY"
says 24 'authorization failure' discoverydb --discover
set_discovery discovery.sendtargets.auth.password "$DISCOVERY"
says 0 "$portal,1 $TARGET" discoverydb --discover
# It proves itself as well, and one that cannot is not believed.
set_discovery discovery.sendtargets.auth.username_in lunette
set_discovery discovery.sendtargets.auth.password_in "$MUTUAL"
says 0 "$portal,1 $TARGET" discoverydb --discover
set_discovery discovery.sendtargets.auth.password_in "wrong$MUTUAL"
exits 19 discoverydb --discover
set_discovery discovery.sendtargets.auth.password_in "$MUTUAL"
# open-iscsi offers MD5 alone until told otherwise, by this setting for discovery too.
administrator target chap --discovery --user disco --secret-file discovery --algorithm sha3-256,sha256
set_discovery discovery.sendtargets.auth.username_in ''
set_discovery discovery.sendtargets.auth.password_in ''
says 24 'authorization failure' discoverydb --discover
set_discovery node.session.auth.chap_algs SHA3-256,SHA256
says 0 "$portal,1 $TARGET" discoverydb --discover

step log out
node "$TARGET" -I default --logout
node "$TARGET" -I other --logout
[ -z "$(ls /sys/class/iscsi_session)" ] || fail "sessions are left"
unseen 'I/O error|session recovery timed out|aborted|detected conn error'
echo "tools: all steps passed"
