//! PERSISTENT RESERVE IN (SPC-4 6.15): what is registered and reserved, and what this device server can do.

use lunette_proto::map::ReservationType;

use super::{holds, transport_id};
use crate::scsi::request::{Answer, Plan, Request, parameter_data};

/// PRGENERATION, and where the number of bytes that follow will be.
fn header(generation: u32) -> Vec<u8> {
    let mut data = generation.to_be_bytes().to_vec();
    data.extend([0; 4]);
    data
}

fn answer(request: &Request<'_>, mut data: Vec<u8>) -> Plan {
    let following = u32::try_from(data.len().saturating_sub(8)).unwrap_or(u32::MAX);
    data[4..8].copy_from_slice(&following.to_be_bytes());
    parameter_data(data, request.cdb.u16(7).into())
}

pub(in crate::scsi) fn read_keys(request: &mut Request<'_>) -> Answer {
    let state = request.unit.shared.state();
    let mut data = header(state.reservations.generation);
    data.extend(state.reservations.registrants.iter().flat_map(|registrant| registrant.key.to_be_bytes()));
    Ok(answer(request, data))
}

pub(in crate::scsi) fn read_reservation(request: &mut Request<'_>) -> Answer {
    let state = request.unit.shared.state();
    let mut data = header(state.reservations.generation);
    if let Some(reservation) = &state.reservations.reservation {
        // When all registrants hold it there is no one key (SPC-4 6.15.3.2).
        let holder = state
            .reservations
            .registrants
            .iter()
            .find(|registrant| !reservation.kind.is_of_all() && holds(reservation, registrant));
        data.extend(holder.map_or(0, |registrant| registrant.key).to_be_bytes());
        data.extend([0, 0, 0, 0, 0, reservation.kind.number(), 0, 0]);
    }
    Ok(answer(request, data))
}

pub(in crate::scsi) fn report_capabilities(request: &mut Request<'_>) -> Answer {
    /// CRH, SIP_C, ATP_C, PTPL_C.
    const CAPABLE: u8 = 0x10 | 0x08 | 0x04 | 0x01;
    /// TMV; ALLOW COMMANDS 011b: TEST UNIT READY goes through all, and what reads goes through Write Exclusive.
    const ALLOWS: u8 = 0x80 | 0b011 << 4;
    let activated = u8::from(request.unit.shared.state().reservations.aptpl);
    let types = (0..=0x0F).filter(|number| ReservationType::from_number(*number).is_some());
    // Type 1h is bit 1 of the first byte, type 8h bit 0 of the second.
    let mask = types.fold(0_u16, |mask, number| mask | 1 << number);
    let [second, first] = mask.to_be_bytes();
    let data = vec![0, 8, CAPABLE, ALLOWS | activated, first, second, 0, 0];
    Ok(parameter_data(data, request.cdb.u16(7).into()))
}

pub(in crate::scsi) fn read_full_status(request: &mut Request<'_>) -> Answer {
    const ALL_TG_PT: u8 = 0x02;
    const R_HOLDER: u8 = 0x01;
    let state = request.unit.shared.state();
    let reservations = &state.reservations;
    let mut data = header(reservations.generation);
    for registrant in &reservations.registrants {
        let held = reservations.reservation.as_ref().filter(|reservation| holds(reservation, registrant));
        let ports = if registrant.all_target_ports { ALL_TG_PT } else { 0 };
        data.extend(registrant.key.to_be_bytes());
        data.extend([0; 4]);
        data.push(ports | held.map_or(0, |_| R_HOLDER));
        data.push(held.map_or(0, |reservation| reservation.kind.number()));
        data.extend([0; 4]);
        data.extend(registrant.nexus.tag.to_be_bytes());
        let id = transport_id::encode(&registrant.nexus);
        data.extend(u32::try_from(id.len()).unwrap_or(u32::MAX).to_be_bytes());
        data.extend(id);
    }
    Ok(answer(request, data))
}
