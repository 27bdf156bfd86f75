//! REQUEST SENSE (SPC-4 6.39): the pending unit attention as parameter data, which clears it; or how far a sanitize
//! operation has come.

use super::cdb::Cdb;
use super::nexus::Attention;
use super::request::{Answer, Request, parameter_data};
use super::sense::{Sense, SenseFormat};

pub(super) fn handle(request: &mut Request<'_>) -> Answer {
    let attention = request.nexus.unit(request.lun).take().map(Attention::sense);
    let sense = attention.or_else(|| request.unit.shared.sanitize_sense()).unwrap_or(Sense::NO_SENSE);
    report(request.cdb, sense)
}

/// DESC selects the format, whatever the Control mode page says.
pub(super) fn report(cdb: &Cdb, sense: Sense) -> Answer {
    let format = if cdb.bit(1, 0) { SenseFormat::Descriptor } else { SenseFormat::Fixed };
    Ok(parameter_data(sense.encode(format).to_vec(), cdb.u8(4).into()))
}
