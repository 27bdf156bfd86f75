//! PDUs of commands and their data, right and wrong.

use lunette_proto::iscsi::initiator::{
    DataOut, LogoutRequest, NopOut, ScsiCommand, TaskManagement, TextRequest,
};
use lunette_proto::iscsi::{Ahs, BHS_BYTES, Bhs, Serial, TAG_NONE};

use super::{Bed, Order};
use crate::Input;

impl Bed {
    /// Sends a command's PDU, and what may come unsolicited with it; gives its tag and its number.
    pub(super) fn begin(&mut self, slot: usize, order: &Order<'_>) -> (u32, usize) {
        let host = &mut self.hosts[slot];
        let tag = host.next_tag();
        let first =
            (host.settings.first_burst_bytes() as usize).min(order.data.len()).min(order.expected as usize);
        let immediate = if order.write && host.settings.immediate_data() { first } else { 0 };
        let unsolicited = order.write && order.eager && !host.settings.initial_r2t();
        let mut command = ScsiCommand {
            immediate: order.immediate,
            is_final: !unsolicited,
            read: order.read,
            write: order.write,
            attribute: 1,
            lun: order.lun,
            task_tag: tag,
            expected_len: order.expected,
            cmd_sn: host.cmd_sn,
            exp_stat_sn: host.numbers.stat_sn,
            ..ScsiCommand::default()
        };
        let in_header = order.cdb.len().min(16);
        command.cdb[..in_header].copy_from_slice(&order.cdb[..in_header]);
        let ahs = match order.cdb.get(16..) {
            Some(rest) if !rest.is_empty() => Ahs::extended_cdb_segment(rest),
            _ => Vec::new(),
        };
        host.send(&mut self.world, command.encode(), &ahs, &order.data[..immediate], None);
        let number = host.sent;
        if unsolicited {
            let (mut at, mut data_sn) = (immediate, Serial(0));
            loop {
                let to = first.min(at + 600);
                let pdu = DataOut {
                    is_final: to == first,
                    task_tag: tag,
                    transfer_tag: TAG_NONE,
                    data_sn: data_sn.take(),
                    offset: u32::try_from(at).expect("it is short"),
                    ..DataOut::default()
                };
                host.send(&mut self.world, pdu.encode(), &[], &order.data[at..to], None);
                at = to;
                if at == first {
                    break;
                }
            }
        }
        (tag, number)
    }

    /// Answers the R2Ts of a command.
    pub(super) fn finish_data(&mut self, slot: usize, tag: u32, data: &[u8]) {
        for _ in 0..64 {
            let host = &mut self.hosts[slot];
            let Some(index) = host.wanted.iter().position(|wanted| wanted.r2t.task_tag == tag) else {
                return;
            };
            let wanted = host.wanted[index];
            let end = (wanted.r2t.offset + wanted.r2t.desired_len) as usize;
            if end > data.len() {
                // There is not so much: it waits for ever.
                return;
            }
            host.wanted.remove(index);
            let mut at = wanted.r2t.offset as usize;
            let mut data_sn = Serial(0);
            while at < end {
                let to = end.min(at + 8192);
                let pdu = DataOut {
                    is_final: to == end,
                    lun: wanted.r2t.lun,
                    task_tag: tag,
                    transfer_tag: wanted.r2t.transfer_tag,
                    data_sn: data_sn.take(),
                    offset: u32::try_from(at).expect("it is short"),
                    ..DataOut::default()
                };
                host.send(&mut self.world, pdu.encode(), &[], &data[at..to], None);
                at = to;
            }
        }
    }

    /// A write of which the data does not come yet.
    pub(super) fn begin_write(&mut self, slot: usize, input: &mut Input<'_>) {
        let (kind, blocks) = (input.u8(), u32::from(input.u8()));
        let mut cdb = vec![0; 16];
        (cdb[0], cdb[8]) = (0x2A, blocks as u8);
        let lun = u64::from(kind & 3);
        let order = Order {
            cdb: &cdb,
            lun: lun << 48,
            expected: if kind & 0x80 != 0 { 8 << 20 } else { blocks * if lun == 1 { 4096 } else { 512 } },
            read: false,
            write: true,
            data: &[],
            immediate: kind & 0x40 != 0,
            eager: kind & 0x20 != 0,
        };
        self.exact = false;
        if order.immediate || self.hosts[slot].has_room() {
            self.begin(slot, &order);
        }
    }

    /// Data for an R2T, rightly or not quite.
    pub(super) fn answer_r2t(&mut self, slot: usize, input: &mut Input<'_>) {
        let (which, how) = (usize::from(input.u8()), input.u8());
        let host = &mut self.hosts[slot];
        if host.wanted.is_empty() {
            return;
        }
        self.exact = false;
        let index = which % host.wanted.len();
        host.is_rough |= how != 0 || index != 0;
        let wanted = &mut host.wanted[index];
        let left = (wanted.r2t.desired_len - wanted.sent).min(16 << 10);
        let len = if how & 1 == 0 { left } else { left / 2 };
        let is_final = (wanted.sent + len == wanted.r2t.desired_len) != (how & 2 != 0);
        let pdu = DataOut {
            is_final,
            lun: wanted.r2t.lun,
            task_tag: wanted.r2t.task_tag,
            transfer_tag: wanted.r2t.transfer_tag.wrapping_add(u32::from(how & 4 != 0)),
            data_sn: Serial(wanted.data_sn.wrapping_add(u32::from(how & 8 != 0))),
            offset: (wanted.r2t.offset + wanted.sent).wrapping_add(u32::from(how >> 4)),
            ..DataOut::default()
        };
        wanted.sent += len;
        wanted.data_sn += 1;
        if is_final {
            host.wanted.remove(index);
        }
        host.send(&mut self.world, pdu.encode(), &[], &vec![how; len as usize], None);
    }

    pub(super) fn any_data_out(&mut self, slot: usize, input: &mut Input<'_>) {
        let how = input.u8();
        self.exact = false;
        let host = &mut self.hosts[slot];
        host.is_rough = true;
        let pdu = DataOut {
            is_final: how & 1 != 0,
            task_tag: host.tag.wrapping_sub(u32::from(how >> 4)),
            transfer_tag: if how & 2 != 0 { TAG_NONE } else { input.u8().into() },
            data_sn: Serial(u32::from(how >> 2 & 3)),
            offset: input.u16().into(),
            ..DataOut::default()
        };
        let data = vec![how; input.u16().into()];
        // What does not come as announced may never end.
        self.hosts[slot].pending.iter_mut().for_each(|pending| pending.sure = false);
        self.hosts[slot].send(&mut self.world, pdu.encode(), &[], &data, None);
    }

    /// Any header, with any data, perhaps damaged on its way.
    pub(super) fn any_pdu(&mut self, slot: usize, input: &mut Input<'_>) {
        let (base, patches) = (input.u8(), input.u8());
        self.exact = false;
        let host = &mut self.hosts[slot];
        let (cmd_sn, tag) = (host.cmd_sn, host.next_tag());
        let mut bhs = match base & 7 {
            0 => NopOut { task_tag: tag, transfer_tag: TAG_NONE, cmd_sn, ..NopOut::default() }.encode(),
            1 => ScsiCommand { is_final: true, task_tag: tag, cmd_sn, ..ScsiCommand::default() }.encode(),
            2 => TaskManagement {
                immediate: true,
                function: 1,
                task_tag: tag,
                cmd_sn,
                ..TaskManagement::default()
            }
            .encode(),
            3 => TextRequest {
                is_final: true,
                task_tag: tag,
                transfer_tag: TAG_NONE,
                cmd_sn,
                ..TextRequest::default()
            }
            .encode(),
            4 => DataOut { task_tag: tag - 1, transfer_tag: TAG_NONE, ..DataOut::default() }.encode(),
            5 => LogoutRequest {
                immediate: true,
                reason: 2,
                task_tag: tag,
                cmd_sn,
                ..LogoutRequest::default()
            }
            .encode(),
            6 => Bhs::new(input.u8()),
            _ => Bhs::new(0x10),
        };
        for _ in 0..patches & 7 {
            let at = usize::from(input.u8()) % BHS_BYTES;
            bhs.0[at] = input.u8();
        }
        let ahs = if patches & 8 != 0 { input.short() } else { &[] };
        let ahs = &ahs[..ahs.len() / 4 * 4];
        let data = if patches & 0x10 != 0 { input.short() } else { &[] };
        let flip = (patches & 0x20 != 0).then(|| (input.u16(), input.u8()));
        if bhs.opcode() == DataOut::OPCODE {
            host.is_rough = true;
        }
        if matches!(bhs.opcode(), 1 | 2 | 5) {
            // It may end or complete what others wait for.
            self.everything_is_unsure();
        }
        self.hosts[slot].send(&mut self.world, bhs, ahs, data, flip);
    }
}
