//! Vital product data (SPC-4 7.8, and the pages of SBC-3). What a page says of a volume is in the table of pages;
//! page 00h is the table itself.

use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::map::{naa, serial};

use super::cdb::Cdb;
use super::copy::third_party_copy;
use super::inquiry::{BLOCK_DEVICE, VENDOR, WELL_KNOWN};
use super::provisioning::{
    UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, UNMAP_GRANULARITY_BYTES, write_same_blocks_max,
};
use super::request::{Answer, parameter_data};
use super::sense::Sense;
use super::write_atomic::AtomicLimits;
use super::{LogicalUnit, TargetView, compare_and_write};

/// What follows the 4 bytes of a page's header.
type Body = fn(&TargetView, &LogicalUnit) -> Vec<u8>;

/// Pages of a volume, in ascending order.
static PAGES: [(u8, Body); 9] = [
    (0x00, supported_pages),
    (0x80, unit_serial_number),
    (0x83, device_identification),
    (0x86, extended_inquiry),
    (0x87, mode_page_policy),
    (0x8F, third_party_copy),
    (0xB0, block_limits),
    (0xB1, block_device_characteristics),
    (0xB2, logical_block_provisioning),
];

/// OPTIMAL TRANSFER LENGTH: enough to keep every node of a stripe busy, little enough to overlap.
const OPTIMAL_TRANSFER_BYTES: u32 = 1 << 20;

/// A page of a volume.
pub(super) fn page(view: &TargetView, unit: &LogicalUnit, code: u8, cdb: &Cdb) -> Answer {
    let Some((_, body)) = PAGES.iter().find(|(page, _)| *page == code) else {
        return Err(Sense::cdb_field(2).into());
    };
    answer(BLOCK_DEVICE, code, &body(view, unit), cdb)
}

/// A page of the REPORT LUNS well-known logical unit (SPC-4 8.2): of the target, not of a volume.
pub(super) fn well_known_page(view: &TargetView, code: u8, cdb: &Cdb) -> Answer {
    let body = match code {
        0x00 => vec![0x00, 0x83],
        0x83 => target_designators(view),
        _ => return Err(Sense::cdb_field(2).into()),
    };
    answer(WELL_KNOWN, code, &body, cdb)
}

fn answer(peripheral: u8, code: u8, body: &[u8], cdb: &Cdb) -> Answer {
    let [len_high, len_low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut data = vec![peripheral, code, len_high, len_low];
    data.extend(body);
    Ok(parameter_data(data, cdb.u16(3).into()))
}

fn supported_pages(_: &TargetView, _: &LogicalUnit) -> Vec<u8> {
    PAGES.iter().map(|(code, _)| *code).collect()
}

/// The NAA name of a logical unit, by which copies name it too.
pub(super) fn unit_naa(unit: &LogicalUnit) -> [u8; 16] {
    naa(unit.cluster, unit.volume)
}

fn unit_serial_number(_: &TargetView, unit: &LogicalUnit) -> Vec<u8> {
    serial(unit.cluster, unit.volume).into_bytes()
}

/// SPC-4 7.8.6: of the logical unit first an NAA name, which every initiator prefers; then those of
/// the port and the target.
fn device_identification(view: &TargetView, unit: &LogicalUnit) -> Vec<u8> {
    let mut t10 = VENDOR.to_vec();
    t10.extend(serial(unit.cluster, unit.volume).into_bytes());
    let mut body = designator(BINARY, LOGICAL_UNIT, NAA, &unit_naa(unit));
    body.extend(designator(ASCII, LOGICAL_UNIT, T10_VENDOR_ID, &t10));
    body.extend(target_designators(view));
    body
}

fn target_designators(view: &TargetView) -> Vec<u8> {
    let port = [0, 0].into_iter().chain(view.relative_port.to_be_bytes()).collect::<Vec<_>>();
    let group = [0, 0].into_iter().chain(view.portal_group_tag.to_be_bytes()).collect::<Vec<_>>();
    let mut body = designator(BINARY, TARGET_PORT, RELATIVE_TARGET_PORT, &port);
    body.extend(designator(BINARY, TARGET_PORT, TARGET_PORT_GROUP, &group));
    // The names of an iSCSI port and device (RFC 7143 4.2.7.1).
    let port_name = format!("{},t,0x{:04x}", view.iqn, view.portal_group_tag);
    body.extend(designator(UTF8, TARGET_PORT, SCSI_NAME, &scsi_name(&port_name)));
    body.extend(designator(UTF8, TARGET_DEVICE, SCSI_NAME, &scsi_name(&view.iqn)));
    body
}

const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF8: u8 = 3;
const LOGICAL_UNIT: u8 = 0b00;
const TARGET_PORT: u8 = 0b01;
const TARGET_DEVICE: u8 = 0b10;
const T10_VENDOR_ID: u8 = 1;
const NAA: u8 = 3;
const RELATIVE_TARGET_PORT: u8 = 4;
const TARGET_PORT_GROUP: u8 = 5;
const SCSI_NAME: u8 = 8;

/// A designation descriptor (SPC-4 7.8.6).
fn designator(code_set: u8, association: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    const ISCSI: u8 = 0x50;
    const PIV: u8 = 0x80;
    // The protocol is told for ports and devices only.
    let (protocol, piv) = if association == LOGICAL_UNIT { (0, 0) } else { (ISCSI, PIV) };
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut descriptor = vec![protocol | code_set, piv | association << 4 | kind, 0, len];
    descriptor.extend(&value[..usize::from(len)]);
    descriptor
}

/// Ends with a zero and fills 4 bytes. Names longer than the length field can say,
/// which RFC 7143 does not allow, are cut.
fn scsi_name(name: &str) -> Vec<u8> {
    let mut value = name.as_bytes().to_vec();
    value.truncate(251);
    value.push(0);
    value.resize(value.len().next_multiple_of(4), 0);
    value
}

/// SPC-4 7.8.7, Extended INQUIRY Data: 60 bytes after the header.
fn extended_inquiry(_: &TargetView, _: &LogicalUnit) -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x01; // SIMPSUP
    body[2] = 0x01; // V_SUP: a volatile cache, if WCE is set
    body[3] = 0x01; // LUICLR: REPORT LUNS clears its unit attention everywhere
    body
}

/// Mode Page Policy: the Control page belongs to the target port, which is the gateway; all others are shared.
fn mode_page_policy(_: &TargetView, _: &LogicalUnit) -> Vec<u8> {
    const SHARED: u8 = 0b00;
    const PER_TARGET_PORT: u8 = 0b01;
    vec![0x0A, 0x00, PER_TARGET_PORT, 0, 0x3F, 0xFF, SHARED, 0]
}

/// SBC-3, Block Limits: 60 bytes after the header.
fn block_limits(_: &TargetView, unit: &LogicalUnit) -> Vec<u8> {
    let blocks = |bytes: u32| bytes.checked_div(unit.block_bytes).unwrap_or(0).max(1);
    let granularity = u16::try_from(blocks(BLOCK_BYTES)).unwrap_or(u16::MAX);
    const WSNZ: u8 = 0x01;
    // QEMU up to 7.2 at least aborts on disks with blocks of 4 KiB that report one: it takes it for the size of its map of
    // holes, and asks itself, with a length that is no multiple of 4 KiB, what is not in it yet. 0 is "not reported".
    let (granularity_of_unmap, alignment) = match unit.block_bytes {
        BLOCK_BYTES => (0, 0),
        _ => (blocks(UNMAP_GRANULARITY_BYTES), 0x8000_0000), // UGAVALID, alignment 0
    };
    let mut body = vec![WSNZ, compare_and_write::BLOCKS_MAX];
    body.extend(granularity.to_be_bytes());
    for field in [
        unit.transfer_blocks_max(),
        blocks(OPTIMAL_TRANSFER_BYTES),
        0, // MAXIMUM PREFETCH LENGTH
        UNMAP_BLOCKS_MAX,
        UNMAP_DESCRIPTORS_MAX,
        granularity_of_unmap,
        alignment,
    ] {
        body.extend(field.to_be_bytes());
    }
    body.extend(u64::from(write_same_blocks_max(unit)).to_be_bytes());
    let atomic = AtomicLimits::of(unit);
    // Length, alignment and granularity; what is written in several atomic parts (0) is not supported.
    for field in [atomic.len_max, atomic.granularity, atomic.granularity] {
        body.extend(field.to_be_bytes());
    }
    body.resize(60, 0);
    body
}

/// SBC-3, Block Device Characteristics: does not rotate; reads after a block erase succeed (WABEREQ).
fn block_device_characteristics(_: &TargetView, _: &LogicalUnit) -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x01;
    body[3] = 0b01 << 6;
    body
}

/// SBC-3, Logical Block Provisioning: UNMAP and WRITE SAME unmap, zeros afterwards, thin.
fn logical_block_provisioning(_: &TargetView, _: &LogicalUnit) -> Vec<u8> {
    const LBPU: u8 = 0x80;
    const LBPWS: u8 = 0x40;
    const LBPWS10: u8 = 0x20;
    const LBPRZ: u8 = 0x04;
    const THIN: u8 = 0x02;
    vec![0, LBPU | LBPWS | LBPWS10 | LBPRZ, THIN, 0]
}
