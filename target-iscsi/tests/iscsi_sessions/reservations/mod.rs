//! Reservations among sessions: who may do what, who is told, what is kept, and what happens in between.

mod access;
mod changes;
mod ports;

use crate::bed::{Bed, pattern};
use crate::initiator::{Ended, Initiator, read10, write10};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const IGNORE: u8 = 6;
const MOVE: u8 = 7;

const CONFLICT: u8 = 0x18;
const BUSY: u8 = 0x08;
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];
const PREEMPTED: Option<[u8; 3]> = Some([6, 0x2a, 3]);
const RELEASED: Option<[u8; 3]> = Some([6, 0x2a, 4]);
const UNREGISTERED: Option<[u8; 3]> = Some([6, 0x2a, 5]);

fn out_cdb(action: u8, kind: u8, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2]) = (0x5f, action, kind);
    cdb[5..9].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

fn list(key: u64, new_key: u64, flags: u8) -> Vec<u8> {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(new_key.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn send_out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, list: &[u8]) -> Ended {
    host.write(bed, out_cdb(action, kind, list.len()), list)
}

fn out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, key: u64, new_key: u64) -> u8 {
    send_out(bed, host, action, kind, &list(key, new_key, 0)).status
}

/// Sends the command and does not wait for its end.
fn begin_out(bed: &mut Bed, host: &mut Initiator, action: u8, kind: u8, key: u64, new_key: u64) -> u32 {
    let list = list(key, new_key, 0);
    let mut command = host.command_header(out_cdb(action, kind, list.len()), list.len() as u32);
    command.write = true;
    host.send(bed, command.encode(), &list);
    command.task_tag
}

fn report(bed: &mut Bed, host: &mut Initiator, action: u8, len: u16) -> Vec<u8> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (0x5e, action);
    cdb[7..9].copy_from_slice(&len.to_be_bytes());
    let ended = host.read(bed, cdb, len.into());
    assert_eq!(ended.status, 0);
    ended.data
}

fn keys(bed: &mut Bed, host: &mut Initiator) -> Vec<u64> {
    let data = report(bed, host, 0, 1024);
    data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

fn cdb(bytes: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn test_unit_ready(bed: &mut Bed, host: &mut Initiator) -> Ended {
    host.command_to(bed, 0, [0; 16], 0, &[])
}

fn plain(bed: &mut Bed, host: &mut Initiator, bytes: &[u8]) -> u8 {
    host.command_to(bed, 0, cdb(bytes), 0, &[]).status
}

fn write(bed: &mut Bed, host: &mut Initiator) -> u8 {
    host.write(bed, write10(0, 1), &pattern(512, 1)).status
}

fn read(bed: &mut Bed, host: &mut Initiator) -> u8 {
    host.read(bed, read10(0, 1), 512).status
}

/// Holder (key 1), another registrant (key 2), a stranger.
fn three(bed: &mut Bed) -> [Initiator; 3] {
    let mut hosts = [1, 2, 3].map(|isid| Initiator::ready_as(bed, isid));
    for (host, key) in hosts.iter_mut().zip([1, 2]) {
        assert_eq!(out(bed, host, REGISTER, 0, 0, key), 0);
    }
    hosts
}
