//! Whether a file or a device holds anything: what is not blank is not formatted.
//!
//! Looks at the beginning and the end, where everything that is known puts its own, and at samples in between.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Read at either end.
const EDGE_BYTES: u64 = 4 << 20;
const SAMPLES: u64 = 1000;
const SAMPLE_BYTES: u64 = 4096;

/// A mark that says what a device is used for.
struct Signature {
    offset: u64,
    magic: &'static [u8],
    name: &'static str,
}

/// By places from the beginning. Those that are more telling come first: a partition table may be there too.
const SIGNATURES: &[Signature] = &[
    Signature { offset: 0, magic: b"LUKS\xba\xbe", name: "an encrypted volume (LUKS)" },
    Signature { offset: 512 + 24, magic: b"LVM2 001", name: "a physical volume of LVM" },
    Signature { offset: 24, magic: b"LVM2 001", name: "a physical volume of LVM" },
    Signature { offset: 4096, magic: b"\xfc\x4e\x2b\xa9", name: "a member of a Linux RAID (mdraid)" },
    Signature { offset: 0, magic: b"\xfc\x4e\x2b\xa9", name: "a member of a Linux RAID (mdraid)" },
    Signature { offset: 0, magic: b"XFSB", name: "an XFS file system" },
    Signature { offset: 1080, magic: b"\x53\xef", name: "an ext2, ext3 or ext4 file system" },
    Signature { offset: 65_536 + 64, magic: b"_BHRfS_M", name: "a Btrfs file system" },
    Signature {
        offset: 4096 + 24,
        magic: b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        name: "a bcache device",
    },
    Signature { offset: 4086, magic: b"SWAPSPACE2", name: "swap space" },
    Signature { offset: 0, magic: b"bluestore block device", name: "a Ceph OSD" },
    Signature { offset: 3, magic: b"NTFS    ", name: "an NTFS file system" },
    Signature { offset: 32_769, magic: b"CD001", name: "an ISO 9660 file system" },
    Signature { offset: 512, magic: b"EFI PART", name: "a GPT partition table" },
    Signature { offset: 4096, magic: b"EFI PART", name: "a GPT partition table" },
    Signature { offset: 510, magic: b"\x55\xaa", name: "a partition table or a boot sector" },
];

/// ZFS writes its labels to both ends; each has uberblocks of a KiB or more, some of them used.
const ZFS_UBERBLOCKS: std::ops::Range<usize> = 128 << 10..256 << 10;
const ZFS_STEP: usize = 1024;
const ZFS_MAGIC: u64 = 0x00ba_b10c;
/// By places before the end, as old RAID members and GPT's second copy have them.
const RAID_MAGIC: &[u8; 4] = b"\xfc\x4e\x2b\xa9";

/// What there is; `None` if nothing was found but zeros.
pub(super) fn find(file: &File, size_bytes: u64) -> io::Result<Option<String>> {
    let edge = EDGE_BYTES.min(size_bytes);
    let begin = read(file, 0, edge)?;
    let end_offset = size_bytes - edge;
    let end = read(file, end_offset, edge)?;
    if let Some(at) = first_byte(&begin) {
        return Ok(Some(named(&begin).map_or_else(|| data(at as u64), str::to_owned)));
    }
    if let Some(at) = first_byte(&end) {
        let name = named_at_end(&end, size_bytes);
        return Ok(Some(name.map_or_else(|| data(end_offset + at as u64), str::to_owned)));
    }
    let between = end_offset.saturating_sub(edge) / SAMPLE_BYTES;
    for sample in 0..SAMPLES.min(between) {
        // Spread evenly; all of it if that is not more.
        let number = u128::from(between) * u128::from(sample) / u128::from(SAMPLES.min(between));
        let offset = edge + u64::try_from(number).unwrap_or(0) * SAMPLE_BYTES;
        if let Some(at) = first_byte(&read(file, offset, SAMPLE_BYTES)?) {
            return Ok(Some(data(offset + at as u64)));
        }
    }
    Ok(None)
}

fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    // At most `EDGE_BYTES`.
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn first_byte(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte != 0)
}

fn data(offset: u64) -> String {
    format!("data at byte {offset}")
}

fn has(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|bytes| bytes.starts_with(magic))
}

fn has_zfs(label: &[u8]) -> bool {
    ZFS_UBERBLOCKS
        .step_by(ZFS_STEP)
        .any(|at| has(label, at, &ZFS_MAGIC.to_le_bytes()) || has(label, at, &ZFS_MAGIC.to_be_bytes()))
}

fn named(begin: &[u8]) -> Option<&'static str> {
    if has_zfs(begin) {
        return Some("a member of a ZFS pool");
    }
    SIGNATURES
        .iter()
        .find(|mark| has(begin, usize::try_from(mark.offset).unwrap_or(usize::MAX), mark.magic))
        .map(|mark| mark.name)
}

fn named_at_end(end: &[u8], size_bytes: u64) -> Option<&'static str> {
    const RAID: &str = "a member of a Linux RAID (mdraid)";
    // Metadata 0.90: the last 64 KiB that are aligned to that; 1.0: 8 KiB before the end, aligned to 4 KiB.
    let old = (size_bytes / 65_536).checked_sub(1).map(|unit| unit * 65_536);
    let new = size_bytes.checked_sub(8192).map(|at| at / 4096 * 4096);
    let first = size_bytes - end.len() as u64;
    for offset in [old, new].into_iter().flatten() {
        let at = offset.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if at.is_some_and(|at| has(end, at, RAID_MAGIC)) {
            return Some(RAID);
        }
    }
    if end.len() >= 512 && has(end, end.len() - 512, b"EFI PART") {
        return Some("a GPT partition table (its second copy, at the end)");
    }
    // The last two labels lie at a multiple of 256 KiB before the end.
    let label = 256 << 10;
    let whole = usize::try_from(size_bytes % label as u64).unwrap_or(0);
    let labels = end.len().checked_sub(whole + label)?;
    has_zfs(&end[labels..]).then_some("a member of a ZFS pool")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(len).expect("a length");
        file
    }

    /// Guards against data that is overlooked: a byte anywhere at either end, or in each sample.
    #[test]
    fn a_byte_is_found() {
        const LEN: u64 = 40 << 20;
        assert_eq!(find(&file(LEN), LEN).expect("read"), None);
        assert_eq!(find(&file(0), 0).expect("read"), None);
        for offset in [0, 1, 4095, (4 << 20) - 1, LEN - (4 << 20), LEN - 1] {
            let file = file(LEN);
            file.write_all_at(&[1], offset).expect("written");
            assert_eq!(find(&file, LEN).expect("read"), Some(format!("data at byte {offset}")));
        }
        // 32 MiB lie between: 8192 pages, so that a run of nine has a sample in it.
        for first in [1024, 5000, 9206] {
            let file = file(LEN);
            file.write_all_at(&[1; 9 * 4096], first * 4096).expect("written");
            assert!(find(&file, LEN).expect("read").is_some(), "{first}");
        }
        // A small one is read as a whole.
        let small = file(9 << 20);
        small.write_all_at(&[7], (4 << 20) + 4095).expect("written");
        assert_eq!(find(&small, 9 << 20).expect("read"), Some(format!("data at byte {}", (4 << 20) + 4095)));
    }

    /// Guards the words: what is known is called by its name.
    #[test]
    fn signatures_are_named() {
        const LEN: u64 = 16 << 20;
        for mark in SIGNATURES {
            let file = file(LEN);
            file.write_all_at(mark.magic, mark.offset).expect("written");
            assert_eq!(find(&file, LEN).expect("read").as_deref(), Some(mark.name));
        }
        let at = |offset: u64, magic: &[u8]| {
            let file = file(LEN);
            file.write_all_at(magic, offset).expect("written");
            find(&file, LEN).expect("read").expect("found")
        };
        assert!(at(LEN - 65_536, RAID_MAGIC).contains("mdraid"));
        assert!(at(LEN - 8192, RAID_MAGIC).contains("mdraid"));
        assert!(at(LEN - 512, b"EFI PART").contains("GPT"));
        assert!(at((128 << 10) + 5 * 1024, &ZFS_MAGIC.to_le_bytes()).contains("ZFS"));
        assert!(at(LEN - (128 << 10), &ZFS_MAGIC.to_be_bytes()).contains("ZFS"));
    }
}
