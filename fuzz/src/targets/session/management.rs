//! What is no command: pings, task management, text, logouts, new connections, new maps.

use lunette_proto::ids::{TargetId, VolumeId};
use lunette_proto::iscsi::TAG_NONE;
use lunette_proto::iscsi::initiator::{LogoutRequest, NopOut, ScsiCommand, TaskManagement, TextRequest};

use super::{Bed, CONNECTIONS_MAX, host};
use crate::Input;
use crate::targets::phrases::expand;

impl Bed {
    pub(super) fn ping(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        let data = input.short();
        let host = &mut self.hosts[slot];
        if how & 1 == 0 && !host.has_room() {
            return;
        }
        let nop = NopOut {
            immediate: how & 1 != 0,
            task_tag: host.next_tag(),
            transfer_tag: TAG_NONE,
            cmd_sn: host.cmd_sn,
            exp_stat_sn: host.numbers.stat_sn,
            ..NopOut::default()
        };
        host.send(&mut self.world, nop.encode(), &[], data, None);
    }

    /// Answers a ping of the target, which wants no answer to that.
    pub(super) fn answer_ping(&mut self, slot: usize) {
        let host = &mut self.hosts[slot];
        let Some((lun, transfer_tag)) = host.pings.pop() else { return };
        let nop = NopOut {
            immediate: true,
            lun,
            task_tag: TAG_NONE,
            transfer_tag,
            cmd_sn: host.cmd_sn,
            exp_stat_sn: host.numbers.stat_sn,
        };
        host.send(&mut self.world, nop.encode(), &[], &[], None);
    }

    pub(super) fn manage(&mut self, slot: usize, input: &mut Input<'_>) {
        let (function, how) = (input.u8(), input.u8());
        let function = if function < 0x80 { function % 10 } else { function & 0x7F };
        let host = &mut self.hosts[slot];
        let pending = &host.pending[..];
        let meant = pending.get(usize::from(how >> 3) % pending.len().max(1));
        let (referenced_tag, lun) = meant.map_or((how.into(), 0), |meant| (meant.tag, meant.lun));
        let cmd_sn = host.cmd_sn;
        let request = TaskManagement {
            immediate: how & 1 == 0,
            function,
            lun: if how & 4 == 0 { lun } else { u64::from(how >> 3 & 3) << 48 },
            task_tag: host.next_tag(),
            referenced_tag,
            cmd_sn,
            ref_cmd_sn: cmd_sn.minus(u32::from(how >> 4 & 3)),
            ..TaskManagement::default()
        };
        if !request.immediate && !self.hosts[slot].has_room() {
            return;
        }
        if function == 7 {
            self.may_close();
        }
        self.everything_is_unsure();
        self.hosts[slot].send(&mut self.world, request.encode(), &[], &[], None);
    }

    /// What was reset is over: no device has anything of it, and no answer comes.
    pub(super) fn check_completed(&mut self) {
        for slot in 0..self.hosts.len() {
            for function in std::mem::take(&mut self.hosts[slot].completed) {
                let host = &mut self.hosts[slot];
                let is_last = function.order == host.sent;
                let (lun, order) = (function.lun, function.order);
                let meant = |pending: &host::Pending| {
                    pending.opcode == ScsiCommand::OPCODE && pending.order < order && pending.lun == lun
                };
                match function.function {
                    2 | 4 | 5 => host.pending.retain(|pending| !meant(pending)),
                    6 | 7 => host
                        .pending
                        .retain(|pending| pending.opcode != ScsiCommand::OPCODE || pending.order > order),
                    _ => continue,
                }
                let volume = match lun >> 48 {
                    0 | 2 => 1,
                    1 => 2,
                    3 => 3,
                    _ => continue,
                };
                // LUN 2 is volume 1 again, with tasks of its own.
                let is_alone = matches!(lun, 0x0001_0000_0000_0000 | 0x0003_0000_0000_0000);
                if is_last && !self.copies && is_alone {
                    let id = self.hosts[slot].id;
                    assert!(
                        !self.world.is_at_device(id, Some(volume)),
                        "an aborted command can still take effect"
                    );
                    if function.function != 2 {
                        let other = self.hosts[1 - slot].id;
                        assert!(!self.world.is_at_device(other, Some(volume)), "nor one of another session");
                    }
                }
            }
        }
    }

    pub(super) fn text(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        let text = expand(input.short(), 60_000);
        let host = &mut self.hosts[slot];
        if how & 1 == 0 && !host.has_room() {
            return;
        }
        let request = TextRequest {
            immediate: how & 1 != 0,
            is_final: how & 2 == 0,
            continued: how & 4 != 0,
            task_tag: if how & 8 == 0 { host.next_tag() } else { host.tag },
            transfer_tag: if how & 0x10 == 0 { TAG_NONE } else { u32::from(how >> 5) },
            cmd_sn: host.cmd_sn,
            exp_stat_sn: host.numbers.stat_sn,
            ..TextRequest::default()
        };
        host.send(&mut self.world, request.encode(), &[], &text, None);
        // What may be declared anew is used at once.
        if let Ok(pairs) = lunette_proto::iscsi::text::parse(&text) {
            for (key, value) in pairs.into_iter().filter(|(key, _)| *key == "MaxRecvDataSegmentLength") {
                host.maybe_declared(key, value);
            }
        }
    }

    pub(super) fn logout(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        let host = &mut self.hosts[slot];
        let request = LogoutRequest {
            immediate: true,
            reason: how & 3,
            task_tag: host.next_tag(),
            cid: u16::from(how & 4 == 0),
            cmd_sn: host.cmd_sn,
            ..LogoutRequest::default()
        };
        self.may_close();
        self.hosts[slot].send(&mut self.world, request.encode(), &[], &[], None);
    }

    /// The connection breaks, or not; its initiator comes again.
    pub(super) fn reconnect(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        if self.connections >= CONNECTIONS_MAX {
            return;
        }
        self.may_close();
        let (id, tsih) = (self.hosts[slot].id, self.hosts[slot].tsih);
        if how & 1 != 0 {
            self.world.cut(id);
        }
        let tsih = if how & 2 != 0 { tsih } else { 0 };
        let first = self.hosts[slot].cmd_sn.plus(u32::from(how >> 4)).0;
        self.connect(slot, input.u8(), input.u8(), first, tsih);
    }

    pub(super) fn new_map(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        self.may_close();
        self.copies = true;
        match how & 7 {
            0 => self.second = None,
            1 => self.second = Some(1),
            6 => self.second = Some(0),
            _ => {}
        }
        self.world.apply(|map| {
            let target = map.targets.get_mut(&TargetId(1)).expect("it is never deleted");
            match how & 7 {
                0 => {
                    target.luns.remove(&1);
                }
                1 => {
                    let lun = lunette_proto::map::Lun { volume: VolumeId(2), read_only: how & 8 != 0 };
                    target.luns.insert(1, lun);
                }
                2 => target.luns.get_mut(&0).expect("it is never unmapped").read_only = how & 8 != 0,
                3 => target.draining = how & 8 != 0,
                4 => {
                    let volume = map.volumes.get_mut(&VolumeId(1)).expect("it is never deleted");
                    volume.size_bytes = if how & 8 != 0 { 4 << 10 } else { 8 << 10 };
                }
                5 => map.volumes.get_mut(&VolumeId(1)).expect("it is there").write_back = how & 8 != 0,
                6 => {
                    let lun = lunette_proto::map::Lun { volume: VolumeId(1), read_only: false };
                    target.luns.insert(1, lun);
                }
                _ => {}
            }
        });
    }
}
