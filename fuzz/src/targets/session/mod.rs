//! Whole sessions: two initiators at one target, requests right and wrong, devices that hold commands back or fail,
//! resets, changes of the map, connections that break. Each initiator keeps account of what it may be answered
//! ([`host`]); beside the devices stands a copy of what the standard says that they hold ([`Medium`]).

mod commands;
mod data;
mod disk;
mod host;
mod management;
mod stream;
mod world;

use std::time::Duration;

use lunette_proto::iscsi::initiator::ScsiCommand;
use lunette_target_iscsi::session::Event;

use self::host::{Ended, Host};
use self::world::{VOLUMES, World};
use super::commands::error;
use crate::Input;
use crate::scsi::{Medium, is_definite};

/// Steps of one input.
const STEPS_MAX: usize = 48;
/// Data of one command that is really sent.
const SENT_BYTES_MAX: usize = 64 << 10;
/// Connections of one input.
const CONNECTIONS_MAX: usize = 6;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bed = Bed::new(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        bed.step(&mut input);
        bed.check_completed();
    }
    bed.finish();
}

struct Bed {
    world: World,
    hosts: Vec<Host>,
    /// What the volumes hold, if `exact`.
    shadow: Vec<Medium>,
    exact: bool,
    /// A copy was begun, or the map has changed: commands go to units that they were not sent to.
    copies: bool,
    /// Which volume is at LUN 1, by its place in [`VOLUMES`].
    second: Option<usize>,
    connections: usize,
}

/// A SCSI command to send.
struct Order<'a> {
    cdb: &'a [u8],
    lun: u64,
    expected: u32,
    read: bool,
    write: bool,
    data: &'a [u8],
    immediate: bool,
    /// Data that may come unsolicited does not wait for an R2T.
    eager: bool,
}

impl Bed {
    fn new(input: &mut Input<'_>) -> Self {
        let world = World::new();
        let shadow = VOLUMES.iter().map(|(_, size, block)| Medium::new(*size, *block as usize)).collect();
        let mut bed = Self {
            world,
            hosts: Vec::new(),
            shadow,
            exact: true,
            copies: false,
            second: Some(1),
            connections: 0,
        };
        let (shape, first) = (input.u8(), input.pick(&[0x100, 0xffff_fff0, 0xffff_ffff, 0x7fff_fffd, 0]));
        bed.connect(0, shape, input.u8(), first, 0);
        bed.connect(1, 0, 0, 5, 0);
        for host in 0..2 {
            for lun in 0..2 {
                bed.plain(host, lun << 48, &[0; 6]);
            }
            bed.hosts[host].ended.clear();
        }
        bed
    }

    /// Connects the initiator's port `slot`, with the keys that `shape` and `step` stand for.
    fn connect(&mut self, slot: usize, shape: u8, step: u8, first: u32, tsih: u16) {
        if self.connections >= CONNECTIONS_MAX {
            return;
        }
        self.connections += 1;
        let yes = |bit: u8| if shape >> bit & 1 == 0 { "Yes" } else { "No" }.to_owned();
        let crc = |bit: u8| if step >> bit & 1 == 0 { "None" } else { "CRC32C" }.to_owned();
        let burst = [262_144, 4096, 512, 16_776_192][usize::from(shape >> 2 & 3)];
        let first_burst = [65_536, 512, 1024, 4096][usize::from(shape >> 4 & 3)];
        let segment = [8192, 512, 1020, 262_144][usize::from(shape >> 6)];
        let keys = [
            ("InitialR2T", yes(0)),
            ("ImmediateData", yes(1)),
            ("MaxBurstLength", burst.to_string()),
            ("FirstBurstLength", first_burst.to_string()),
            ("MaxRecvDataSegmentLength", segment.to_string()),
            ("HeaderDigest", crc(0)),
            ("DataDigest", crc(1)),
            ("MaxOutstandingR2T", [1, 2, 8, 100][usize::from(step >> 2 & 3)].to_string()),
        ];
        let mut host = Host::new(self.world.connect(), u8::try_from(slot).unwrap_or(0) + 1, first, step >> 4);
        host.tsih = tsih;
        host.login(&mut self.world, &keys);
        if slot == self.hosts.len() {
            self.hosts.push(host);
            return;
        }
        // The session of before is gone, or going: what was asked over it is not answered any more.
        let before = std::mem::replace(&mut self.hosts[slot], host);
        self.everything_is_unsure();
        self.hosts[slot].may_close = true;
        if self.hosts[slot].is_logged_in() {
            let at_device = self.world.is_at_device(before.id, None);
            assert!(!at_device, "a session was reinstated while commands of the old one were under way");
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let slot = usize::from(what >> 7);
        self.hosts.iter_mut().for_each(|host| host.ended.clear());
        for other in 0..self.hosts.len() {
            self.hosts[other].receive(&mut self.world);
        }
        match what & 0x1F {
            0..=3 => self.io(slot, what, input),
            4..=7 => self.any_command(slot, input),
            8 => self.ping(slot, input),
            9 => self.manage(slot, input),
            10 => self.text(slot, input),
            11 => self.world.disk(u64::from(input.u8() % 3) + 1).hold(),
            12 => {
                let (disk, which) = (u64::from(input.u8() % 3) + 1, input.u8());
                self.world.disk(disk).release_one(which.into());
                self.world.settle();
            }
            13 => self.release(),
            14 => self.world.disk(u64::from(input.u8() % 3) + 1).fail_next(error(input.u8())),
            15 => self.begin_write(slot, input),
            16 => self.answer_r2t(slot, input),
            17 => self.any_data_out(slot, input),
            18 => self.any_pdu(slot, input),
            19 => {
                let time = Duration::from_millis(u64::from(input.u16()));
                self.may_close();
                self.world.pass(time);
            }
            20 => self.new_map(input),
            21 => {
                self.everything_is_unsure();
                let deaf = input.u8() & 1 != 0;
                self.world.deafen(self.hosts[slot].id, deaf);
            }
            22 => {
                self.everything_is_unsure();
                self.world.end_sanitize(input.u8() & 1 != 0);
            }
            23 => match input.u8() & 3 {
                0 => self.world.disks.hold_changes(),
                1 => self.world.disks.refuse_change(),
                _ => {
                    self.world.disks.release_changes();
                    self.world.settle();
                }
            },
            24 => self.reconnect(slot, input),
            25 => self.logout(slot, input),
            26 => {
                self.may_close();
                let event = if input.u8() & 1 == 0 { Event::Kick } else { Event::Stop };
                self.world.event(self.hosts[slot].id, event);
            }
            27 => self.answer_ping(slot),
            28 => self.reserve(slot, input),
            _ => self.io(slot, what, input),
        }
        for other in 0..self.hosts.len() {
            self.hosts[other].receive(&mut self.world);
        }
    }

    /// What other sessions do may end commands of this one.
    fn everything_is_unsure(&mut self) {
        for pending in self.hosts.iter_mut().flat_map(|host| &mut host.pending) {
            pending.sure = false;
        }
        self.exact = false;
    }

    fn may_close(&mut self) {
        self.everything_is_unsure();
        self.hosts.iter_mut().for_each(|host| host.may_close = true);
    }

    fn release(&mut self) {
        for (id, ..) in VOLUMES {
            self.world.disk(id).release();
        }
        self.world.settle();
    }

    /// Nothing is under way: what the volumes hold must be what the model says, or becomes it.
    fn is_quiet(&mut self) -> bool {
        let is_idle = |host: &Host| host.pending.iter().all(|pending| pending.opcode != ScsiCommand::OPCODE);
        let quiet = self.hosts.iter().all(|host| is_idle(host) && self.world.flows(host.id))
            && !self.world.disks.is_holding()
            && VOLUMES.iter().all(|(id, ..)| {
                let disk = self.world.disk(*id);
                !disk.is_holding() && !disk.holds(None) && !disk.has_failures()
            });
        if quiet {
            if self.exact {
                self.compare("nobody has changed anything");
            } else {
                self.adopt();
            }
        } else {
            self.exact = false;
        }
        quiet
    }

    fn adopt(&mut self) {
        self.shadow = VOLUMES.iter().map(|(id, ..)| self.world.disk(*id).medium()).collect();
        self.exact = true;
    }

    fn compare(&self, why: &str) {
        for ((id, ..), shadow) in VOLUMES.iter().zip(&self.shadow) {
            assert!(self.world.disk(*id).is(shadow), "volume {id}: {why}");
        }
    }

    /// A command without data, to its end.
    fn plain(&mut self, slot: usize, lun: u64, cdb: &[u8]) {
        let order = Order {
            cdb,
            lun,
            expected: 0,
            read: false,
            write: false,
            data: &[],
            immediate: false,
            eager: false,
        };
        self.command(slot, &order);
    }

    /// Sends a command and all the data that it is asked for, and compares what comes of it with the model.
    fn command(&mut self, slot: usize, order: &Order<'_>) -> Option<u8> {
        if !order.immediate && !self.hosts[slot].has_room() {
            return None;
        }
        let quiet = self.is_quiet();
        if matches!(order.cdb[0], 0x83 | 0x5F | 0x48) {
            // Others may be aborted, or changed.
            self.copies |= order.cdb[0] == 0x83;
            self.everything_is_unsure();
            self.exact = quiet;
        }
        let (tag, number) = self.begin(slot, order);
        self.finish_data(slot, tag, order.data);
        let host = &mut self.hosts[slot];
        let index = host.ended.iter().position(|ended| ended.tag == tag && ended.order == number);
        let Some(ended) = index.map(|index| host.ended.swap_remove(index)) else {
            self.exact = false;
            return None;
        };
        if quiet {
            self.judge(order, &ended);
        } else {
            self.exact = false;
        }
        Some(ended.status)
    }

    fn judge(&mut self, order: &Order<'_>, ended: &Ended) {
        let lun = (order.lun >> 48) as u16 & 0x3FFF;
        // LUN 2 is volume 1 again.
        let volume = match lun {
            0 | 2 => 0,
            1 if self.second.is_some() => self.second.unwrap_or(1),
            3 => 2,
            _ => return self.compare("there is no such unit"),
        };
        let is_definite = is_definite(ended.status, &ended.sense);
        if ended.status == 0 {
            let is_whole = |want: &[u8]| want.len() == order.expected as usize && order.read;
            if let Some(want) = self.shadow[volume].read(order.cdb).filter(|want| is_whole(want)) {
                assert_eq!(ended.data_in, want, "read {:02x?}", order.cdb);
            }
            let sent = order.data.len().min(if order.write { order.expected as usize } else { 0 });
            // Without Data-Out nothing was written, but for what needs none.
            if sent > 0 || order.cdb[0] == 0x93 && order.cdb[1] & 1 != 0 {
                self.shadow[volume].expect(order.cdb, &order.data[..sent]);
            }
        } else if !is_definite {
            return self.adopt();
        }
        if order.cdb[0] == 0x83 && ended.status == 0 {
            return self.adopt();
        }
        self.compare(if is_definite {
            "a definite failure has changed something"
        } else {
            "a command did something else"
        });
    }

    /// Everything is let go: who is owed an answer gets it, and sessions that end are gone.
    fn finish(&mut self) {
        self.hosts.iter_mut().for_each(|host| host.ended.clear());
        for slot in 0..self.hosts.len() {
            self.world.deafen(self.hosts[slot].id, false);
        }
        self.world.disks.release_changes();
        self.release();
        self.world.end_sanitize(false);
        for host in &mut self.hosts {
            host.receive(&mut self.world);
        }
        self.check_completed();
        for host in &self.hosts {
            if self.world.is_closed(host.id) {
                assert!(host.may_close, "a connection was closed without a reason");
                continue;
            }
            let forgotten = host.pending.iter().find(|pending| pending.sure);
            assert!(forgotten.is_none(), "never answered: {forgotten:?}");
        }
        let ids: Vec<_> = self.hosts.iter().map(|host| host.id).collect();
        for id in ids {
            self.world.cut(id);
            assert!(self.world.is_gone(id), "nothing is under way, and a session is not released");
        }
        assert!(self.connections > 2 || self.world.sessions() == 0);
    }
}
