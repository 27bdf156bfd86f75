//! LOG SENSE (SPC-4 6.8) and the log pages of a volume (SPC-4 7.3). Nothing is saved, and nothing has a threshold.

use super::LogicalUnit;
use super::request::{Answer, Request, parameter_data};
use super::sense::Sense;

/// Log parameters, by parameter code.
type Parameters = Vec<(u16, Vec<u8>)>;

/// A log page of the table.
struct Row {
    code: u8,
    parameters: fn(&LogicalUnit) -> Parameters,
}

/// Log pages, in ascending order. Page 00h is the table itself.
static PAGES: [Row; 3] = [
    Row { code: SUPPORTED_PAGES, parameters: |_| Vec::new() },
    Row { code: 0x19, parameters: statistics },
    Row { code: 0x2F, parameters: informational_exceptions },
];

const SUPPORTED_PAGES: u8 = 0x00;
const ALL_SUBPAGES: u8 = 0xFF;
/// Binary format list parameters, of which none is saved.
const CONTROL: u8 = 0x03;
const CUMULATIVE: u8 = 0b01;

pub(super) fn sense(request: &mut Request<'_>) -> Answer {
    let cdb = request.cdb;
    for bit in [1, 0] {
        // PPC, which is obsolete, and SP.
        if cdb.bit(1, bit) {
            return Err(Sense::cdb_bit(1, bit).into());
        }
    }
    let (control, code, subpage) = (cdb.u8(2) >> 6, cdb.u8(2) & 0x3F, cdb.u8(3));
    let Some(row) = PAGES.iter().find(|row| row.code == code) else {
        return Err(Sense::cdb_bit(2, 5).into());
    };
    let is_list = code == SUPPORTED_PAGES;
    if subpage != 0 && !(is_list && subpage == ALL_SUBPAGES) {
        return Err(Sense::cdb_field(3).into());
    }
    // The lists have no values, so PC is not looked at.
    if !is_list && control != CUMULATIVE {
        return Err(Sense::cdb_bit(2, 7).into());
    }
    let first = cdb.u16(5);
    let parameters = (row.parameters)(request.unit);
    if first > parameters.last().map_or(0, |(code, _)| *code) {
        return Err(Sense::cdb_field(5).into());
    }
    let mut body = Vec::new();
    if is_list {
        body = supported_pages(subpage);
    }
    for (code, value) in parameters.iter().filter(|(code, _)| *code >= first) {
        body.extend(code.to_be_bytes());
        body.extend([CONTROL, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
        body.extend(value);
    }
    let [len_high, len_low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    /// SPF: the list with subpages.
    const SPF: u8 = 0x40;
    /// DS: the parameters of the page are not saved.
    const DS: u8 = 0x80;
    let flags = if subpage != 0 { SPF } else { 0 } | if is_list { 0 } else { DS };
    let mut data = vec![flags | code, subpage, len_high, len_low];
    data.extend(body);
    Ok(parameter_data(data, cdb.u16(7).into()))
}

/// Supported Log Pages, or Supported Log Pages and Subpages (SPC-4 7.3.16, 7.3.18).
fn supported_pages(subpage: u8) -> Vec<u8> {
    if subpage == 0 {
        return PAGES.iter().map(|row| row.code).collect();
    }
    let mut list = vec![SUPPORTED_PAGES, 0, SUPPORTED_PAGES, ALL_SUBPAGES];
    list.extend(PAGES.iter().filter(|row| row.code != SUPPORTED_PAGES).flat_map(|row| [row.code, 0]));
    list
}

/// General Statistics and Performance (SPC-4 7.3.9), through this gateway since it began. Time is not measured: no
/// intervals are counted, and one is 0 s long. Readers expect its three parameters together.
fn statistics(unit: &LogicalUnit) -> Parameters {
    let counts = unit.shared.statistics.counts();
    let blocks = |bytes: u64| bytes.checked_div(unit.block_bytes.into()).unwrap_or(0);
    let fields = [
        counts.read_commands,
        counts.write_commands,
        blocks(counts.received_bytes),
        blocks(counts.transmitted_bytes),
        0, // READ COMMAND PROCESSING INTERVALS
        0, // WRITE COMMAND PROCESSING INTERVALS
        0, // WEIGHTED NUMBER OF READ COMMANDS PLUS WRITE COMMANDS
        0, // WEIGHTED READ COMMAND PROCESSING PLUS WRITE COMMAND PROCESSING
    ];
    /// Idle time intervals.
    const IDLE: [u8; 8] = [0; 8];
    /// The length of an interval in seconds: an integer with a negative power of ten.
    const INTERVAL: [u8; 8] = [0; 8];
    vec![
        (0x0001, fields.iter().flat_map(|field| field.to_be_bytes()).collect()),
        (0x0002, IDLE.to_vec()),
        (0x0003, INTERVAL.to_vec()),
    ]
}

/// Informational Exceptions (SPC-4 7.3.11): none, and no temperature.
fn informational_exceptions(_: &LogicalUnit) -> Parameters {
    const NO_TEMPERATURE: u8 = 0xFF;
    vec![(0x0000, vec![0, 0, NO_TEMPERATURE, 0])]
}
