//! A disk of a storage node of which bytes were changed: superblocks, journal, checkpoint, pages, descriptors, data.
//! Changed bytes may be sealed again with the right checksums, as the work of a program that is wrong would be.
//! Opening it refuses or recovers; what can be read then is something that was written there once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use lunette_proto::checksum::{crc32c, crc32c_of_parts};
use lunette_proto::ids::{ClusterId, DiskId, DiskUuid, Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::node::{Change, Durability};
use lunette_storage_node::engine::Operation;
use lunette_storage_node::store::{Disk, Identity, Layout, Prepared, Store};
use parking_lot::Mutex;

use crate::Input;

const PAGE: usize = 4096;
const UUID: DiskUuid = DiskUuid(0x1234_5678_9ABC_DEF0);
const EPOCH: Epoch = Epoch(1);
const EXTENTS: [ExtentId; 3] = [
    ExtentId { namespace: Namespace(7), index: 0 },
    ExtentId { namespace: Namespace(7), index: 900 },
    ExtentId { namespace: Namespace(9), index: 1 },
];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut disk = Memory::of(&IMAGE.bytes);
    let mut sealed = false;
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let (where_, at) = (input.u8(), u64::from(input.u16()));
        let part = &PARTS[usize::from(where_ & 0x3F) % PARTS.len()];
        let offset = part.place(at % part.len());
        let change = input.short();
        disk.change(offset, change, where_ & 0x40 != 0);
        if where_ & 0x80 != 0 {
            sealed = true;
            disk.seal(part.kind, offset);
        }
    }
    let disk = Arc::new(disk);
    let Ok((mut store, _)) = Store::open(Arc::clone(&disk)) else { return };
    look(&store, sealed);
    if !sealed {
        store.audit().expect("what was opened is in order");
    }
    // It goes on: whatever it refuses, it does not refuse by a panic.
    for operation in operations(true) {
        match store.prepare(EPOCH, &operation) {
            Ok(Prepared::Blocked) | Err(_) => return,
            Ok(Prepared::Answer { .. }) => {}
        }
    }
    if store.commit().is_err() || checkpoint(&mut store, &disk).is_none() {
        return;
    }
    drop(store);
    match Store::open(disk) {
        Ok((store, _)) => look(&store, sealed),
        // What a wrong program wrote may only be found out when something is written beside it.
        Err(error) => assert!(sealed, "what was open, and has written all, opens again: {error:?}"),
    }
}

/// Reads everything: a block is what was written there once, or said to be damaged.
fn look<D: Disk>(store: &Store<D>, sealed: bool) {
    let view = store.view();
    for extent in EXTENTS {
        let _ = view.versions(extent, true);
        let _ = view.prepared(extent);
        let _ = view.read_prepared(extent);
        let _ = view.verify(extent, None, 16..18);
        for block in [0, 1, 2, 16, 20, 32, 48, 63] {
            let Ok(data) = view.read(extent, block..block + 1, true) else { continue };
            assert_eq!(data.len(), BLOCK_BYTES as usize);
            let first = data[0];
            // All bytes of a block are the same.
            let known = data[1..] == data[..data.len() - 1]
                && (first == 0 || IMAGE.written.contains(&(extent, block, first)));
            assert!(known || sealed, "{extent} {block} is nothing that was ever written");
        }
    }
}

/// A medium in memory: an image that is shared, and what differs from it.
struct Memory {
    image: &'static [u8],
    pages: Mutex<BTreeMap<u64, Box<[u8; PAGE]>>>,
}

impl Memory {
    fn of(image: &'static [u8]) -> Self {
        Self { image, pages: Mutex::default() }
    }

    fn get(&self, offset: u64, out: &mut [u8]) {
        let pages = self.pages.lock();
        let mut at = offset;
        let mut out = out;
        while !out.is_empty() {
            let (page, within) = (at / PAGE as u64, at as usize % PAGE);
            let len = out.len().min(PAGE - within);
            let (part, rest) = out.split_at_mut(len);
            match pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + len]),
                None => part.copy_from_slice(&self.image[at as usize..at as usize + len]),
            }
            out = rest;
            at += len as u64;
        }
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let mut pages = self.pages.lock();
        let (mut at, mut data) = (offset, data);
        while !data.is_empty() {
            let (page, within) = (at / PAGE as u64, at as usize % PAGE);
            let (part, rest) = data.split_at(data.len().min(PAGE - within));
            let bytes = pages.entry(page).or_insert_with(|| {
                let mut bytes = Box::new([0; PAGE]);
                bytes.copy_from_slice(&self.image[page as usize * PAGE..][..PAGE]);
                bytes
            });
            bytes[within..within + part.len()].copy_from_slice(part);
            data = rest;
            at += part.len() as u64;
        }
    }

    /// Bytes in the place of others, or flipped.
    fn change(&mut self, offset: u64, bytes: &[u8], flips: bool) {
        let len = bytes.len().min(usize::try_from(self.size_bytes() - offset).unwrap_or(0));
        let mut changed = bytes[..len].to_vec();
        if flips {
            let mut before = vec![0; len];
            self.get(offset, &mut before);
            changed.iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
        }
        self.put(offset, &changed);
    }

    fn read_vec(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.get(offset, &mut bytes);
        bytes
    }

    fn u32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.get(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Puts right the checksum of what lies at `offset`, and all that hold that checksum.
    fn seal(&self, kind: Kind, offset: u64) {
        let page = offset / PAGE as u64 * PAGE as u64;
        match kind {
            Kind::Superblock => self.seal_superblock(page),
            Kind::Area => self.seal_area(),
            Kind::Page => self.seal_page(page),
            Kind::Descriptor => {
                let sector = offset / 512 * 512;
                let bytes = self.read_vec(sector, 512);
                let crc = crc32c_of_parts([&UUID.0.to_le_bytes()[..], &bytes[..60], &bytes[64..]]);
                let old = self.u32(sector + 60);
                self.put(sector + 60, &crc.to_le_bytes());
                for page in (0..IMAGE.layout.pages).flat_map(|page| [(page, 0), (page, 1)]) {
                    let place = IMAGE.layout.page(page.0, page.1);
                    if self.replace(place, PAGE, old, crc) {
                        self.seal_page(place);
                    }
                }
            }
            Kind::Wal => self.seal_batch(page),
            Kind::Data => {}
        }
    }

    fn seal_superblock(&self, page: u64) {
        let crc = crc32c(&self.read_vec(page, PAGE - 4));
        self.put(page + PAGE as u64 - 4, &crc.to_le_bytes());
    }

    /// The area that the superblocks name.
    fn seal_area(&self) {
        for copy in 0..2 {
            let superblock = Layout::superblock(copy);
            let area = IMAGE.layout.area_offsets[(self.u32(superblock + 100) & 1) as usize];
            let len = (self.u32(superblock + 104) as usize).min(IMAGE.layout.area_bytes as usize);
            let crc = crc32c(&self.read_vec(area, len));
            self.put(superblock + 112, &crc.to_le_bytes());
            self.seal_superblock(superblock);
        }
    }

    fn seal_page(&self, page: u64) {
        let bytes = self.read_vec(page, PAGE);
        let crc = crc32c_of_parts([&UUID.0.to_le_bytes()[..], &bytes[..28], &bytes[32..]]);
        let old = self.u32(page + 28);
        self.put(page + 28, &crc.to_le_bytes());
        for area in IMAGE.layout.area_offsets {
            self.replace(area, IMAGE.layout.area_bytes as usize, old, crc);
        }
        self.seal_area();
    }

    fn seal_batch(&self, page: u64) {
        let len = (self.u32(page + 4) as usize).clamp(64, 64 << 10);
        let len = len.min(usize::try_from(self.size_bytes() - page).unwrap_or(64));
        let bytes = self.read_vec(page, len);
        let crc = crc32c_of_parts([&UUID.0.to_le_bytes()[..], &bytes[..60], &bytes[64..]]);
        let old = self.u32(page + 60);
        self.put(page + 60, &crc.to_le_bytes());
        // The batch after it holds this in its chain.
        for next in
            (0..IMAGE.layout.wal_bytes / PAGE as u64).map(|n| IMAGE.layout.wal_offset + n * PAGE as u64)
        {
            if next != page && self.u32(next) == u32::from_le_bytes(*b"LUWB") && self.u32(next + 40) == old {
                self.put(next + 40, &crc.to_le_bytes());
                self.seal_batch(next);
            }
        }
    }

    /// Puts `new` in the place of `old` wherever it stands.
    fn replace(&self, offset: u64, len: usize, old: u32, new: u32) -> bool {
        let mut found = false;
        let bytes = self.read_vec(offset, len);
        for (at, part) in bytes.windows(4).enumerate() {
            if part == old.to_le_bytes() && old != 0 && old != new {
                self.put(offset + at as u64, &new.to_le_bytes());
                found = true;
            }
        }
        found
    }
}

impl Disk for Memory {
    fn size_bytes(&self) -> u64 {
        self.image.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.get(offset, out);
        Ok(())
    }

    fn read_cached(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read(offset, out)
    }

    fn write(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            assert!(at + part.len() as u64 <= self.size_bytes(), "a write beyond the end");
            self.put(at, part);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_durable(&self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.write(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Superblock,
    Wal,
    Area,
    Page,
    Descriptor,
    Data,
}

/// A part of the disk.
struct Part {
    kind: Kind,
    begin: u64,
    end: u64,
}

impl Part {
    fn len(&self) -> u64 {
        self.end - self.begin
    }

    fn place(&self, at: u64) -> u64 {
        self.begin + at
    }
}

/// Parts that hold something, so that hardly a change goes into the void.
static PARTS: LazyLock<Vec<Part>> = LazyLock::new(|| {
    let layout = &IMAGE.layout;
    let part = |kind, begin, len| Part { kind, begin, end: begin + len };
    let mut parts = vec![
        part(Kind::Superblock, Layout::superblock(0), 120),
        part(Kind::Superblock, Layout::superblock(1), 120),
        part(Kind::Superblock, Layout::superblock(0), 4096),
        part(Kind::Area, layout.area_offsets[0], 512),
        part(Kind::Area, layout.area_offsets[1], 512),
        part(Kind::Wal, layout.wal_offset, layout.wal_bytes),
        part(Kind::Data, layout.units_offset, 8 << 16),
    ];
    let used = |offset: u64, len: usize| IMAGE.bytes[offset as usize..][..len].iter().any(|byte| *byte != 0);
    for n in 0..layout.wal_bytes / PAGE as u64 {
        let page = layout.wal_offset + n * PAGE as u64;
        if IMAGE.bytes[page as usize..].starts_with(b"LUWB") {
            parts.push(part(Kind::Wal, page, 200));
        }
    }
    for page in (0..layout.pages).flat_map(|page| [(page, 0), (page, 1)]) {
        let place = layout.page(page.0, page.1);
        if used(place, PAGE) {
            parts.push(part(Kind::Page, place, 512));
        }
    }
    for unit in 0..layout.units {
        if used(layout.descriptor(unit), 512) {
            parts.push(part(Kind::Descriptor, layout.descriptor(unit), 512));
        }
    }
    parts
});

/// A disk with a little of everything.
struct Image {
    layout: Layout,
    bytes: Vec<u8>,
    /// Extent, block, and the byte that it was filled with.
    written: BTreeSet<(ExtentId, u32, u8)>,
}

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    let layout = Layout::new(2 << 20, 128 << 10).expect("it is large enough");
    let empty: &'static [u8] = vec![0; 2 << 20].leak();
    let disk = Arc::new(Memory::of(empty));
    let identity = Identity { cluster: ClusterId(7), disk: DiskId(1), uuid: UUID };
    Store::format(&disk, &identity, &layout).expect("it is formatted");
    let (mut store, _) = Store::open(Arc::clone(&disk)).expect("it opens");
    let mut written = BTreeSet::new();
    let all = operations(false);
    let half = all.len() / 2;
    for (index, operation) in all.iter().chain(&operations(true)).enumerate() {
        if let Operation::Change { extent, offset, change: Change::Data(data), .. }
        | Operation::Prepare { extent, offset, change: Change::Data(data), .. } = operation
        {
            for (n, block) in (0..).zip(data.chunks(BLOCK_BYTES as usize)) {
                written.insert((*extent, offset / BLOCK_BYTES + n, block[0]));
            }
        }
        if index >= all.len() {
            // Only what the target itself writes later.
            continue;
        }
        let answer = store.prepare(EPOCH, operation).expect("the disk is sound");
        assert!(matches!(answer, Prepared::Answer { reply: Ok(_), .. }), "{operation:?}: {answer:?}");
        store.commit().expect("the disk is sound");
        if index == half {
            checkpoint(&mut store, &disk).expect("the disk is sound");
        }
    }
    let mut bytes = vec![0; empty.len()];
    disk.get(0, &mut bytes);
    Image { layout, bytes, written }
});

fn checkpoint(store: &mut Store<Arc<Memory>>, disk: &Arc<Memory>) -> Option<()> {
    let checkpoint = store.begin_checkpoint().ok()?;
    checkpoint.write(disk).ok()?;
    store.finish_checkpoint(checkpoint).ok()
}

/// What is done to make the image; `later`: to a disk that was opened.
fn operations(later: bool) -> Vec<Operation> {
    let version = |seq| Version { generation: Generation(3), seq };
    let fill = |blocks: u32, byte: u8| Change::Data(vec![byte; (blocks * BLOCK_BYTES) as usize].into());
    let change = |extent: usize, seq, block: u32, change| Operation::Change {
        extent: EXTENTS[extent],
        version: version(seq),
        offset: block * BLOCK_BYTES,
        change,
        durability: Durability::Stable,
    };
    let prepare = |extent: usize, seq, prev, block: u32, change| Operation::Prepare {
        extent: EXTENTS[extent],
        version: version(seq),
        prev: if prev == 0 { Version::NONE } else { version(prev) },
        offset: block * BLOCK_BYTES,
        change,
    };
    let resolve = |seq, block: u32, blocks: u32| {
        (EXTENTS[0], Generation(3), version(seq), block * BLOCK_BYTES, blocks * BLOCK_BYTES)
    };
    if later {
        return vec![
            change(0, 200, 0, fill(3, 0x21)),
            change(1, 201, 16, fill(2, 0x22)),
            change(0, 202, 48, Change::Zeros { len: 16 * BLOCK_BYTES }),
            change(2, 203, 5, fill(1, 0x23)),
            Operation::Flush { namespace: Namespace(7), generation: Generation(3) },
        ];
    }
    let (extent, generation, committed, offset, len) = resolve(22, 20, 4);
    let commit = Operation::Commit { extent, generation, version: committed, offset, len };
    let (extent, generation, dropped, offset, len) = resolve(24, 32, 2);
    let rollback = Operation::Rollback { extent, generation, version: dropped, offset, len };
    vec![
        Operation::Seal { namespace: Namespace(7), generation: Generation(3) },
        Operation::Seal { namespace: Namespace(9), generation: Generation(3) },
        Operation::Seal { namespace: Namespace(11), generation: Generation(3) },
        change(0, 1, 0, fill(3, 0x11)),
        change(0, 2, 16, fill(16, 0x12)),
        change(0, 3, 48, fill(16, 0x13)),
        change(1, 4, 0, Change::Zeros { len: 16 * BLOCK_BYTES }),
        change(1, 5, 3, fill(1, 0x14)),
        change(2, 6, 32, fill(4, 0x15)),
        prepare(0, 7, 0, 32, fill(2, 0x16)),
        Operation::Watermark { namespace: Namespace(7), generation: Generation(3), seq: 3, complete: true },
        Operation::Delete { namespace: Namespace(11), generation: Generation(3) },
        // Half of it is in the checkpoint, and half in the journal alone.
        change(0, 20, 1, fill(1, 0x17)),
        change(0, 21, 48, Change::Zeros { len: 16 * BLOCK_BYTES }),
        prepare(0, 22, 2, 20, fill(4, 0x18)),
        commit,
        prepare(0, 24, 7, 32, fill(2, 0x19)),
        rollback,
        change(1, 25, 16, fill(16, 0x1A)),
        change(2, 26, 33, Change::Zeros { len: BLOCK_BYTES }),
        prepare(1, 27, 5, 0, Change::Zeros { len: 4 * BLOCK_BYTES }),
        Operation::Watermark { namespace: Namespace(9), generation: Generation(3), seq: 26, complete: false },
        change(0, 28, 2, fill(1, 0x1B)),
    ]
}
