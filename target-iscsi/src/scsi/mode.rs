//! MODE SENSE and MODE SELECT, (6) and (10) (SPC-4 6.11 to 6.14).
//!
//! Changeable are D_SENSE and SWP of the Control page, which belong to the target port (VPD page 87h says so) and last
//! until a reset, and WCE of the Caching page, which belongs to the volume. Other nexuses learn of a change by a unit
//! attention. Nothing is saved separately. The write cache is the owner's, so that only through it WCE is changed.

use std::sync::Arc;

use lunette_volume::device::Data;

use super::cdb::Cdb;
use super::mode_pages::{CACHING, CONTROL, PAGES, Page, Row};
use super::ports;
use super::request::{Answer, Capacity, Plan, Request, be16, be32, be64, parameter_data};
use super::sense::{Failure, Sense};
use super::task::{Job, Progress};
use super::unit::{Modes, SelectModes, SharedUnit};

const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

pub(super) fn sense_6(request: &mut Request<'_>) -> Answer {
    let (descriptors, pages) = sense(request, false)?;
    let len = 3 + descriptors.len() + pages.len();
    let mut data = vec![narrow(len), 0, device_specific(request), narrow(descriptors.len())];
    data.extend(descriptors);
    data.extend(pages);
    Ok(parameter_data(data, request.cdb.u8(4).into()))
}

pub(super) fn sense_10(request: &mut Request<'_>) -> Answer {
    let long_lba = request.cdb.bit(1, 4);
    let (descriptors, pages) = sense(request, long_lba)?;
    let len = u16::try_from(6 + descriptors.len() + pages.len()).unwrap_or(u16::MAX);
    let mut data = len.to_be_bytes().to_vec();
    let long = u8::from(long_lba && !descriptors.is_empty());
    data.extend([0, device_specific(request), long, 0, 0, narrow(descriptors.len())]);
    data.extend(descriptors);
    data.extend(pages);
    Ok(parameter_data(data, request.cdb.u16(7).into()))
}

fn narrow(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// DEVICE-SPECIFIC PARAMETER: WP, and DPOFUA.
fn device_specific(request: &Request<'_>) -> u8 {
    let software = request.unit.shared.modes.load() & Modes::SWP != 0;
    u8::from(request.unit.read_only || software) << 7 | 0x10
}

/// Block descriptors and mode pages.
fn sense(request: &Request<'_>, long_lba: bool) -> Result<(Vec<u8>, Vec<u8>), Sense> {
    let cdb = request.cdb;
    let modes = request.unit.shared.modes.load();
    let value: &dyn Fn(&Row) -> Page = match cdb.u8(2) >> 6 {
        0b00 => &|row| (row.content)(modes),
        0b01 => &|row| (row.changeable)(),
        // A write cache has no default of its own.
        0b10 => &|row| (row.content)(modes & Modes::WCE),
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    let (code, subpage) = (cdb.u8(2) & 0x3F, cdb.u8(3));
    let of_code = |row: &&Row| code == ALL_PAGES || row.code == code;
    // SPC-4 table 361: without a subpage code only pages without one.
    let of_subpage = |row: &&Row| subpage == ALL_SUBPAGES || row.subpage == subpage;
    if !PAGES.iter().any(|row| of_code(&row)) {
        return Err(Sense::cdb_bit(2, 5));
    }
    let known = match code {
        ALL_PAGES => subpage == 0 || subpage == ALL_SUBPAGES,
        _ => PAGES.iter().filter(of_code).any(|row| of_subpage(&row)),
    };
    if !known {
        return Err(Sense::cdb_field(3));
    }
    let pages = PAGES.iter().filter(of_code).filter(of_subpage).flat_map(value).collect();
    let descriptors = if disable_block_descriptors(cdb) {
        Vec::new()
    } else {
        block_descriptor(request.unit.capacity(), long_lba)
    };
    Ok((descriptors, pages))
}

fn disable_block_descriptors(cdb: &Cdb) -> bool {
    cdb.bit(1, 3)
}

/// Of all logical blocks of the volume, in the short or the long form.
fn block_descriptor(capacity: Capacity, long_lba: bool) -> Vec<u8> {
    let mut descriptor = Vec::with_capacity(16);
    if long_lba {
        descriptor.extend(capacity.blocks.to_be_bytes());
        descriptor.extend([0; 4]);
    } else {
        descriptor.extend(u32::try_from(capacity.blocks).unwrap_or(u32::MAX).to_be_bytes());
    }
    // In the short form the first of these bytes is reserved, and 0.
    descriptor.extend(capacity.block_bytes.to_be_bytes());
    descriptor
}

pub(super) fn select_6(request: &mut Request<'_>) -> Answer {
    let len = request.cdb.u8(4).into();
    select(request, len, false)
}

pub(super) fn select_10(request: &mut Request<'_>) -> Answer {
    let len = request.cdb.u16(7);
    select(request, len, true)
}

fn select(request: &mut Request<'_>, len: u16, ten: bool) -> Answer {
    // SP and RTD: nothing is saved, so there is nothing to revert to; PF=0 is a vendor's format.
    for (bit, allowed) in [(0, false), (1, false), (4, true)] {
        if request.cdb.bit(1, bit) != allowed {
            return Err(Sense::cdb_bit(1, bit).into());
        }
    }
    if len == 0 {
        return Ok(Plan::Good);
    }
    let select = ModeSelect {
        shared: Arc::clone(&request.unit.shared),
        capacity: request.unit.capacity(),
        not_owner: ports::not_owner(request.view, request.unit),
        len,
        ten,
    };
    Ok(Plan::Collect(Job::ModeSelect(select), len.into()))
}

/// A MODE SELECT in execution.
pub(super) struct ModeSelect {
    shared: Arc<SharedUnit>,
    capacity: Capacity,
    /// This is a standby path: the write cache is not here.
    not_owner: Option<Sense>,
    len: u16,
    ten: bool,
}

impl ModeSelect {
    /// Everything is checked before anything is changed.
    pub(super) fn data_out(&mut self, list: &[u8]) -> Result<Progress, Failure> {
        if list.len() < usize::from(self.len) {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        }
        let select = self.parse(&list[..usize::from(self.len)])?;
        let modes = self.shared.modes.load();
        let changes_cache = (modes ^ select.applied_to(modes)) & Modes::WCE != 0;
        if let Some(sense) = self.not_owner.filter(|_| changes_cache) {
            return Err(sense.into());
        }
        Ok(Progress::Change(Box::new(select)))
    }

    /// They have changed.
    pub(super) fn settled(&self) -> Progress {
        Progress::Done(Data::new(), self.len.into())
    }

    fn parse(&self, list: &[u8]) -> Result<SelectModes, Sense> {
        const SHORT: Sense = Sense::PARAMETER_LIST_LENGTH;
        let (header_len, descriptors_len_at, long_lba) =
            if self.ten { (8, 6, list.get(4).ok_or(SHORT)? & 1 == 1) } else { (4, 3, false) };
        let descriptors_len = if self.ten {
            be16(list, descriptors_len_at).ok_or(SHORT)?
        } else {
            u16::from(*list.get(descriptors_len_at).ok_or(SHORT)?)
        };
        match (descriptors_len, long_lba) {
            (0, _) | (8, false) | (16, true) => {}
            _ => return Err(parameter(descriptors_len_at)),
        }
        let pages_at = header_len + usize::from(descriptors_len);
        let descriptor = list.get(header_len..pages_at).ok_or(SHORT)?;
        if !descriptor.is_empty() {
            self.check_descriptor(descriptor, long_lba, header_len)?;
        }
        let mut select = SelectModes::default();
        let mut at = pages_at;
        while at < list.len() {
            at += self.parse_page(&list[at..], at, &mut select)?;
        }
        Ok(select)
    }

    /// A volume's geometry cannot be changed; the number of blocks may be left out (0) or at its most.
    fn check_descriptor(&self, descriptor: &[u8], long_lba: bool, at: usize) -> Result<(), Sense> {
        const SHORT: Sense = Sense::PARAMETER_LIST_LENGTH;
        let (blocks, most, length_at) = if long_lba {
            (be64(descriptor, 0).ok_or(SHORT)?, u64::MAX, 12)
        } else {
            (be32(descriptor, 0).ok_or(SHORT)?.into(), u64::from(u32::MAX), 4)
        };
        if blocks != 0 && blocks != most && blocks != self.capacity.blocks {
            return Err(parameter(at));
        }
        // In the short form the first byte is reserved.
        let mask = if long_lba { u32::MAX } else { 0x00FF_FFFF };
        let length = be32(descriptor, length_at).ok_or(SHORT)? & mask;
        if length != self.capacity.block_bytes {
            return Err(parameter(at + length_at + usize::from(!long_lba)));
        }
        Ok(())
    }

    /// One page at `at` of the list; its length.
    fn parse_page(&self, rest: &[u8], at: usize, select: &mut SelectModes) -> Result<usize, Sense> {
        let &[first, second, ..] = rest else { return Err(Sense::PARAMETER_LIST_LENGTH) };
        let code = first & 0x3F;
        let has_subpage = first & 0x40 != 0;
        let subpage = if has_subpage { second } else { 0 };
        if !PAGES.iter().any(|row| row.code == code) {
            return Err(parameter_bit(at, 5));
        }
        let row = PAGES
            .iter()
            .find(|row| (row.code, row.subpage) == (code, subpage) && has_subpage == (row.subpage != 0));
        let row = row.ok_or_else(|| if has_subpage { parameter(at + 1) } else { parameter_bit(at, 6) })?;
        let current = (row.content)(select.applied_to(self.shared.modes.load()));
        let header = row.header_len();
        // PAGE LENGTH is what a header ends with: one byte, two with a subpage.
        let len_at = if has_subpage { 2 } else { 1 };
        if rest.get(..header).ok_or(Sense::PARAMETER_LIST_LENGTH)?[len_at..] != current[len_at..header] {
            return Err(parameter(at + len_at));
        }
        let page = rest.get(..current.len()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let changeable = (row.changeable)();
        for index in header..current.len() {
            let fixed = (page[index] ^ current[index]) & !changeable[index];
            if fixed != 0 {
                return Err(parameter_bit(at + index, 7 - fixed.leading_zeros()));
            }
        }
        match (code, subpage) {
            (CONTROL, 0) => {
                select.set(Modes::D_SENSE, page[2] & 0x04 != 0);
                select.set(Modes::SWP, page[4] & 0x08 != 0);
            }
            (CACHING, 0) => select.set(Modes::WCE, page[2] & 0x04 != 0),
            _ => {}
        }
        Ok(current.len())
    }
}

fn parameter(at: usize) -> Sense {
    Sense::parameter_field(u16::try_from(at).unwrap_or(u16::MAX))
}

fn parameter_bit(at: usize, bit: u32) -> Sense {
    Sense::parameter_bit(u16::try_from(at).unwrap_or(u16::MAX), u8::try_from(bit).unwrap_or(0))
}
