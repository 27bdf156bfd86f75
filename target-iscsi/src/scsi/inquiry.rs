//! INQUIRY (SPC-4 6.6): standard data here, vital product data in `vpd`.

use super::cdb::Cdb;
use super::request::{Answer, Request, parameter_data};
use super::sense::Sense;
use super::{TargetView, vpd};

/// T10 VENDOR IDENTIFICATION, our own.
pub(super) const VENDOR: &[u8; 8] = b"LUNETTE ";
const PRODUCT: &[u8; 16] = b"VOLUME          ";
/// Major and minor version, padded with spaces.
const REVISION: [u8; 4] =
    revision(concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR")).as_bytes());
/// SAM-5, iSCSI, SPC-4, SBC-3, no version of them claimed.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00A0, 0x0960, 0x0460, 0x04C0];

/// PERIPHERAL QUALIFIER and DEVICE TYPE: a block device that is there.
pub(super) const BLOCK_DEVICE: u8 = 0x00;
/// A well-known logical unit.
pub(super) const WELL_KNOWN: u8 = 0x1E;
/// Qualifier 011b, type 1Fh: nothing can be there.
const NOTHING: u8 = 0x7F;

pub(super) fn handle(request: &mut Request<'_>) -> Answer {
    match page(request.cdb)? {
        None => standard(BLOCK_DEVICE, request.cdb),
        Some(page) => vpd::page(request.view, request.unit, page, request.cdb),
    }
}

/// INQUIRY to the REPORT LUNS well-known logical unit.
pub(super) fn well_known(view: &TargetView, cdb: &Cdb) -> Answer {
    match page(cdb)? {
        None => standard(WELL_KNOWN, cdb),
        Some(page) => vpd::well_known_page(view, page, cdb),
    }
}

/// INQUIRY to a LUN that nothing is mapped to: it says so, and has no vital product data.
pub(super) fn absent(cdb: &Cdb) -> Answer {
    match page(cdb)? {
        None => standard(NOTHING, cdb),
        Some(_) => Err(Sense::cdb_field(2).into()),
    }
}

/// PAGE CODE, with EVPD.
fn page(cdb: &Cdb) -> Result<Option<u8>, Sense> {
    if cdb.bit(1, 1) {
        // CMDDT, obsolete.
        return Err(Sense::cdb_bit(1, 1));
    }
    match (cdb.bit(1, 0), cdb.u8(2)) {
        (true, page) => Ok(Some(page)),
        (false, 0) => Ok(None),
        (false, _) => Err(Sense::cdb_field(2)),
    }
}

fn standard(peripheral: u8, cdb: &Cdb) -> Answer {
    const LEN: usize = 96;
    let third_party_copy = if peripheral == BLOCK_DEVICE { 0x08 } else { 0 };
    let mut data = Vec::with_capacity(LEN);
    data.extend([
        peripheral,
        0,
        0x06,                    // VERSION: SPC-4
        0x10 | 0x02,             // HISUP, RESPONSE DATA FORMAT
        LEN as u8 - 5,           // ADDITIONAL LENGTH
        0x10 | third_party_copy, // TPGS: implicit; 3PC
        0x10,                    // MULTIP: every gateway is a port
        0x02,                    // CMDQUE
    ]);
    data.extend(VENDOR);
    data.extend(PRODUCT);
    data.extend(REVISION);
    data.resize(58, 0);
    data.extend(VERSION_DESCRIPTORS.iter().flat_map(|code| code.to_be_bytes()));
    data.resize(LEN, 0);
    Ok(parameter_data(data, cdb.u16(3).into()))
}

const fn revision(version: &[u8]) -> [u8; 4] {
    let mut padded = [b' '; 4];
    let mut at = 0;
    while at < version.len() && at < padded.len() {
        padded[at] = version[at];
        at += 1;
    }
    padded
}
