//! Pages of metadata, their directory, and the checkpoint area. This page is the specification.
//!
//! A page is 4096 bytes and has two places; a checkpoint writes it to the one that is not in use.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LUPG` |
//! | 4 | 4 | page |
//! | 8 | 8 | number of the checkpoint that wrote it |
//! | 16 | 4 | extents in it |
//! | 20 | 8 | zeros |
//! | 28 | 4 | CRC-32C of (disk uuid 16, the page without this field) |
//! | 32 | 4064 | extents, then zeros |
//!
//! An extent: namespace 8, index 8, the newest snapshot that sees it 8 (all bits: it is what there is now), slots that it answers
//! for 8 (a bit each), newest version 16, slots that have a unit 8, number of holes 1, of prepared changes 1, zeros 6; each hole: slots 8, version 16; each unit: unit 4, CRC of its descriptor 4; each prepared change, in
//! the order of the slots: slot 1, first block in the unit 1, blocks 1, what they become 1 (1 data, 2 zeros), unit 4,
//! CRC of its descriptor 4, version 16, newest version of the slot's blocks 16.
//!
//! A checkpoint area has its checksum in the superblock:
//!
//! | size | field |
//! |---|---|
//! | 4 | magic `LUCP` |
//! | 4 | pages in the directory |
//! | 8 | number of the checkpoint |
//! | 8 | bytes of the namespaces' state |
//! | 8 each | directory: CRC of the page 4, its place in use 1 (255: not written yet), zeros 3 |
//! | | the namespaces' state (see [`namespaces`](super::namespaces)) |

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes};
use lunette_proto::checksum::crc32c_of_parts;
use lunette_proto::ids::DiskUuid;

use super::chains::{Extents, Key, Room};
use super::extents::Extent;
use super::layout::PAGE_BYTES;

const MAGIC: &[u8; 4] = b"LUPG";
const AREA_MAGIC: &[u8; 4] = b"LUCP";
const BYTES: usize = PAGE_BYTES as usize;
const HEADER: usize = 32;
const CRC: usize = 28;
const ROOM: usize = BYTES - HEADER;
/// A page is filled up to this with new extents; the rest is for those in it to grow.
pub(crate) const FILL: usize = ROOM - 256;
const NOT_WRITTEN: u8 = 255;

/// What the directory says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRef {
    pub(crate) crc: u32,
    /// The place in use; `None` if it was never written: it is empty.
    pub(crate) place: Option<u8>,
}

#[derive(Clone, Debug)]
struct Page {
    members: Vec<Key>,
    used: usize,
    on_disk: PageRef,
}

/// Which record of which extent is in which page.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Pages with room for more, by room.
    open: BTreeSet<(usize, u32)>,
    dirty: BTreeSet<u32>,
    max: usize,
}

impl Pages {
    pub(crate) fn new(max: u32) -> Self {
        Self { pages: Vec::new(), open: BTreeSet::new(), dirty: BTreeSet::new(), max: max as usize }
    }

    /// There are at most so many pages from now on, or as many as there are already.
    pub(crate) fn set_max(&mut self, max: u32) {
        self.max = max as usize;
    }

    /// Takes a page as it is on the disk, the next one by number.
    pub(crate) fn restore<'a>(&mut self, on_disk: PageRef, extents: impl Iterator<Item = (Key, &'a Extent)>) {
        let mut page = Page { members: Vec::new(), used: 0, on_disk };
        for (key, extent) in extents {
            page.members.push(key);
            page.used += extent.record_len();
        }
        let number = u32::try_from(self.pages.len()).expect("at most `max` pages");
        self.pages.push(page);
        self.reopen(number);
    }

    fn reopen(&mut self, page: u32) {
        let room = FILL.saturating_sub(self.pages[page as usize].used);
        if room > 0 {
            self.open.insert((room, page));
        }
    }

    fn close(&mut self, page: u32) {
        let room = FILL.saturating_sub(self.pages[page as usize].used);
        self.open.remove(&(room, page));
    }

    /// A page for an extent that is in `from` with a record of the length given, and will have one of `len` bytes;
    /// `None` if there is no room anywhere; `may_add` allows one more page. Both pages are dirty then.
    pub(crate) fn place(
        &mut self,
        key: Key,
        from: Option<(u32, usize)>,
        len: usize,
        may_add: bool,
    ) -> Option<u32> {
        if let Some((page, old)) = from {
            let used = self.pages[page as usize].used - old + len;
            if used <= ROOM {
                self.close(page);
                self.pages[page as usize].used = used;
                self.reopen(page);
                self.dirty.insert(page);
                return Some(page);
            }
        }
        let to = match self.open.range((len, 0)..).next() {
            Some((_, page)) => *page,
            None if may_add && self.pages.len() < self.max => {
                let page = u32::try_from(self.pages.len()).ok()?;
                let on_disk = PageRef { crc: 0, place: None };
                self.pages.push(Page { members: Vec::new(), used: 0, on_disk });
                page
            }
            None => return None,
        };
        if let Some((page, old)) = from {
            self.remove(page, key, old);
        }
        self.close(to);
        let page = &mut self.pages[to as usize];
        page.members.push(key);
        page.used += len;
        self.reopen(to);
        self.dirty.insert(to);
        Some(to)
    }

    /// Takes an extent out of its page.
    pub(crate) fn remove(&mut self, page: u32, key: Key, len: usize) {
        self.close(page);
        let entry = &mut self.pages[page as usize];
        entry.used -= len;
        let at = entry.members.iter().position(|member| *member == key);
        entry.members.swap_remove(at.expect("an extent is in its page"));
        self.reopen(page);
        self.dirty.insert(page);
    }

    /// A record of a page has changed, and is as long as before.
    pub(crate) fn note_change(&mut self, page: u32) {
        self.dirty.insert(page);
    }

    /// Takes back what was placed last: the record is where it was, or nowhere.
    pub(crate) fn undo(&mut self, key: Key, now: (u32, usize), was: Option<(u32, usize)>) {
        self.remove(now.0, key, now.1);
        if let Some((page, len)) = was {
            self.close(page);
            let entry = &mut self.pages[page as usize];
            entry.members.push(key);
            entry.used += len;
            self.reopen(page);
            self.dirty.insert(page);
        }
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("at most `max` pages")
    }

    #[cfg(test)]
    fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Encodes the dirty pages for checkpoint `number`, each with its new place, which is noted as in use.
    pub(crate) fn take_dirty(
        &mut self,
        uuid: DiskUuid,
        number: u64,
        extents: &Extents,
    ) -> Vec<(u32, u8, Bytes)> {
        let mut written = Vec::with_capacity(self.dirty.len());
        for number_of_page in std::mem::take(&mut self.dirty) {
            let page = &mut self.pages[number_of_page as usize];
            let bytes = encode_page(uuid, number_of_page, number, &page.members, extents);
            let crc = (&bytes[CRC..]).get_u32_le();
            let mut place = page.on_disk.place.map_or(0, |place| 1 - place);
            if planted!(PageInPlace) {
                place = page.on_disk.place.unwrap_or(0);
            }
            page.on_disk = PageRef { crc, place: Some(place) };
            written.push((number_of_page, place, bytes));
        }
        written
    }

    /// The directory.
    pub(crate) fn directory(&self) -> impl Iterator<Item = PageRef> {
        self.pages.iter().map(|page| page.on_disk)
    }

    /// Checks that pages and extents say the same of each other.
    pub(crate) fn audit(&self, extents: &Extents) -> Result<(), String> {
        let mut members = 0;
        for (number, page) in self.pages.iter().enumerate() {
            let mut used = 0;
            for key in &page.members {
                let extent = extents.record(*key);
                let extent =
                    extent.ok_or_else(|| format!("page {number} has {key:?}, which is not there"))?;
                if extent.page as usize != number {
                    return Err(format!("{key:?} is in page {}, and page {number} has it", extent.page));
                }
                used += extent.record_len();
            }
            if used != page.used || used > ROOM {
                return Err(format!("page {number} has {used} bytes, and counts {}", page.used));
            }
            members += page.members.len();
        }
        if members != extents.len() {
            return Err(format!("{members} extents in pages, and {} in all", extents.len()));
        }
        Ok(())
    }
}

/// Pages, with as many more as the medium has room for.
pub(crate) struct PagesOf<'a> {
    pub(crate) pages: &'a mut Pages,
    pub(crate) ready: u32,
}

impl Room for PagesOf<'_> {
    fn place(&mut self, key: Key, from: Option<(u32, usize)>, len: usize) -> Option<u32> {
        let may_add = self.pages.len() < self.ready;
        self.pages.place(key, from, len, may_add)
    }

    fn remove(&mut self, page: u32, key: Key, len: usize) {
        self.pages.remove(page, key, len);
    }
}

fn encode_page(uuid: DiskUuid, page: u32, checkpoint: u64, members: &[Key], extents: &Extents) -> Bytes {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(page);
    bytes.put_u64_le(checkpoint);
    bytes.put_u32_le(u32::try_from(members.len()).expect("a page is small"));
    bytes.put_bytes(0, HEADER - bytes.len());
    for key in members {
        extents.record(*key).expect("an extent in a page is there").encode(*key, &mut bytes);
    }
    assert!(bytes.len() <= BYTES, "extents fit their page");
    bytes.resize(BYTES, 0);
    let crc = page_crc(uuid, &bytes);
    bytes[CRC..HEADER].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

fn page_crc(uuid: DiskUuid, bytes: &[u8]) -> u32 {
    crc32c_of_parts([uuid.0.to_le_bytes().as_slice(), &bytes[..CRC], &bytes[HEADER..]])
}

/// Takes page `page`, whose checksum must be `crc`; `None` if it is something else.
pub(crate) fn decode_page(uuid: DiskUuid, page: u32, crc: u32, bytes: &[u8]) -> Option<Vec<(Key, Extent)>> {
    let crc = if planted!(PageChecksumIgnored) { page_crc(uuid, bytes) } else { crc };
    if bytes.len() != BYTES || page_crc(uuid, bytes) != crc || (&bytes[CRC..]).get_u32_le() != crc {
        return None;
    }
    let mut fields = bytes;
    if fields.copy_to_bytes(MAGIC.len()) != MAGIC[..] || fields.get_u32_le() != page {
        return None;
    }
    fields.advance(8);
    let count = fields.get_u32_le() as usize;
    let mut records = &bytes[HEADER..];
    (0..count.min(ROOM)).map(|_| Extent::decode(&mut records, page)).collect()
}

/// The content of a checkpoint area.
pub(crate) fn encode_area(
    checkpoint: u64,
    directory: impl Iterator<Item = PageRef>,
    state: &[u8],
) -> Vec<u8> {
    let mut entries = Vec::new();
    for page in directory {
        entries.put_u32_le(page.crc);
        entries.put_u8(page.place.unwrap_or(NOT_WRITTEN));
        entries.put_bytes(0, 3);
    }
    let mut area = Vec::with_capacity(24 + entries.len() + state.len());
    area.put_slice(AREA_MAGIC);
    area.put_u32_le(u32::try_from(entries.len() / 8).expect("pages are counted in 32 bits"));
    area.put_u64_le(checkpoint);
    area.put_u64_le(state.len() as u64);
    area.put_slice(&entries);
    area.put_slice(state);
    area
}

/// Takes a checkpoint area whose checksum holds: the directory and the namespaces' state; `None` if it is not of
/// `checkpoint`.
pub(crate) fn decode_area(checkpoint: u64, mut area: &[u8]) -> Option<(Vec<PageRef>, &[u8])> {
    if area.len() < 24 || area.copy_to_bytes(AREA_MAGIC.len()) != AREA_MAGIC[..] {
        return None;
    }
    let pages = area.get_u32_le() as usize;
    let number = area.get_u64_le();
    let state_len = usize::try_from(area.get_u64_le()).ok()?;
    if number != checkpoint || area.len() != pages.checked_mul(8)?.checked_add(state_len)? {
        return None;
    }
    let mut directory = Vec::with_capacity(pages);
    for _ in 0..pages {
        let crc = area.get_u32_le();
        let place = match area.get_u8() {
            place @ (0 | 1) => Some(place),
            NOT_WRITTEN => None,
            _ => return None,
        };
        area.advance(3);
        directory.push(PageRef { crc, place });
    }
    Some((directory, area))
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::{ExtentId, Generation, Namespace, Version};

    use super::super::extents::UnitRef;
    use super::*;

    const UUID: DiskUuid = DiskUuid(9);

    fn id(index: u64) -> Key {
        Key::live(ExtentId { namespace: Namespace(1), index })
    }

    /// Guards pages: extents that grow move on, what is written is read, and audits agree all the time.
    #[test]
    fn extents_grow_and_move() {
        let mut pages = Pages::new(64);
        let mut extents = Extents::default();
        for index in 0..64 {
            let mut extent = Extent::default();
            extent.newest = Version { generation: Generation(1), seq: index };
            extent.page = pages.place(id(index), None, extent.record_len(), true).expect("room");
            extents.insert(id(index), extent);
        }
        for slot in 0..64 {
            for index in 0..64 {
                let extent = extents.record_mut(id(index)).expect("there");
                let from = (extent.page, extent.record_len());
                extent.set_unit(slot, UnitRef { unit: u32::from(slot), crc: 0 });
                extent.page = pages.place(id(index), Some(from), extent.record_len(), true).expect("room");
            }
            pages.audit(&extents).expect("in order");
        }
        let written = pages.take_dirty(UUID, 3, &extents);
        assert_eq!(pages.dirty_len(), 0);
        let directory = pages.directory().collect::<Vec<_>>();
        let mut found = Extents::default();
        for (page, place, bytes) in &written {
            let entry = directory[*page as usize];
            assert_eq!(entry.place, Some(*place));
            assert!(decode_page(UUID, page + 1, entry.crc, bytes).is_none());
            assert!(decode_page(UUID, *page, entry.crc ^ 1, bytes).is_none());
            for (id, extent) in decode_page(UUID, *page, entry.crc, bytes).expect("a page") {
                found.insert(id, extent);
            }
        }
        assert_eq!(found, extents);
        // What is undone leaves things as they were.
        let extent = extents.record(id(5)).expect("there");
        let was = (extent.page, extent.record_len());
        let now = pages.place(id(5), Some(was), 4000, true).expect("room");
        assert_ne!(now, was.0);
        pages.undo(id(5), (now, 4000), Some(was));
        pages.audit(&extents).expect("in order");
        let new = pages.place(id(64), None, 48, true).expect("room");
        pages.undo(id(64), (new, 48), None);
        pages.audit(&extents).expect("in order");
        pages.remove(extent.page, id(5), extent.record_len());
        assert!(pages.audit(&extents).is_err());
    }

    /// Guards a full disk: there are no more pages than the layout has room for.
    #[test]
    fn pages_end() {
        let mut pages = Pages::new(2);
        let placed = (0..200).filter(|index| pages.place(id(*index), None, 48, true).is_some()).count();
        assert!((150..=168).contains(&placed), "{placed}");
        assert_eq!(pages.len(), 2);
    }

    /// Guards the checkpoint area: it says the same when it is read, and nothing when it is cut or of another
    /// checkpoint.
    #[test]
    fn area() {
        let directory = [PageRef { crc: 7, place: Some(1) }, PageRef { crc: 0, place: None }];
        let area = encode_area(5, directory.into_iter(), b"state");
        assert_eq!(decode_area(5, &area), Some((directory.to_vec(), b"state".as_slice())));
        assert_eq!(decode_area(4, &area), None);
        for cut in 0..area.len() {
            assert_eq!(decode_area(5, &area[..cut]), None);
        }
    }
}
