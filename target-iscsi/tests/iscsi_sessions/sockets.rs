//! The shell over real sockets, on loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{Epoch, GatewayId, TargetId, VolumeId};
use lunette_proto::iscsi::initiator::{LoginRequest, LogoutRequest, NopOut, ScsiCommand, TaskManagement};
use lunette_proto::iscsi::{Bhs, Encoder, Framer, Pdu, Reply, Serial};
use lunette_proto::limits::PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX;
use lunette_proto::map::{Sanitize, SanitizeKind, Sealed};
use lunette_target_iscsi::server::{Gateway, GatewayConfig, StartError};
use lunette_target_iscsi::session::Secrets;
use lunette_volume::device::DeviceError;
use zeroize::Zeroizing;

use crate::bed::{Disks, IQN, Keeper, VOLUME_BYTES, map, pattern};
use crate::device::Model;
use crate::initiator::{INITIATOR, keys, read10, write10};

struct None_;

impl Secrets for None_ {
    fn unseal(&self, _: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
}

pub(crate) struct Wire(pub(crate) TcpStream, BytesMut);

impl Wire {
    pub(crate) fn connect(portal: SocketAddr) -> Self {
        let stream = TcpStream::connect(portal).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream, BytesMut::new())
    }

    pub(crate) fn send(&mut self, bhs: Bhs, data: &[u8]) {
        let mut slices: Vec<Bytes> = Vec::new();
        Encoder::default().encode(bhs, &[], &[Bytes::copy_from_slice(data)], &mut slices);
        self.0.write_all(&slices.concat()).unwrap();
    }

    pub(crate) fn next(&mut self) -> Option<(Reply, Pdu)> {
        loop {
            if let Some(pdu) = Framer::new(1 << 24).next(&mut self.1).unwrap() {
                return Some((Reply::decode(&pdu.bhs), pdu));
            }
            let mut chunk = [0; 65536];
            let len = self.0.read(&mut chunk).unwrap();
            if len == 0 {
                return None;
            }
            self.1.extend_from_slice(&chunk[..len]);
        }
    }

    pub(crate) fn login(&mut self) -> u16 {
        let request = LoginRequest {
            immediate: true,
            transit: true,
            stage: 1,
            next_stage: 3,
            ..LoginRequest::default()
        };
        self.send(request.encode(), &keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]));
        let Some((Reply::Login(response), _)) = self.next() else { panic!() };
        assert_eq!(response.status, 0);
        response.tsih
    }

    pub(crate) fn command(
        &mut self,
        cmd_sn: u32,
        cdb: [u8; 16],
        read: bool,
        len: u32,
        data: &[u8],
    ) -> (u8, Vec<u8>) {
        let command = ScsiCommand {
            is_final: true,
            read,
            write: !data.is_empty(),
            task_tag: cmd_sn,
            expected_len: len,
            cmd_sn: Serial(cmd_sn),
            cdb,
            ..ScsiCommand::default()
        };
        self.send(command.encode(), data);
        let mut gathered = Vec::new();
        loop {
            match self.next().unwrap() {
                (Reply::DataIn(data_in), pdu) => {
                    gathered.extend_from_slice(&pdu.data);
                    if data_in.has_status {
                        return (data_in.status, gathered);
                    }
                }
                (Reply::ScsiResponse(response), _) => return (response.status, gathered),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn start(portals: &[&str], disk: &Arc<Model>) -> Result<Gateway, StartError> {
    start_with(portals, disk, Keeper::default()).map(|(gateway, _)| gateway)
}

/// With what was kept before.
fn start_with(
    portals: &[&str],
    disk: &Arc<Model>,
    keeper: Keeper,
) -> Result<(Gateway, Arc<Disks>), StartError> {
    let mut map = map();
    map.volumes.remove(&VolumeId(2));
    map.units = keeper.units();
    let devices = Arc::new(Disks::new([(VolumeId(1), Arc::clone(disk))].into(), Arc::new(keeper)));
    let portals = portals.iter().map(|portal| portal.parse().unwrap()).collect();
    let config = GatewayConfig { id: GatewayId(1), name: "one".into(), tag: 1, portals };
    let gateway = Gateway::start(config, Arc::clone(&devices) as _, Arc::new(None_), &map)?;
    Ok((gateway, devices))
}

/// Guards the shell as a whole: IPv4 and IPv6 portals, data, what operators see, reinstatement, kick,
/// a taken port, and a stop that ends everything.
#[test]
fn over_sockets() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let disk = Model::new(VOLUME_BYTES);
    let gateway = start(&["127.0.0.1:0", "[::1]:0"], &disk).unwrap();
    let portals = gateway.portals().to_vec();

    let taken = portals[0].to_string();
    let Err(error) = start(&["127.0.0.1:0", &taken], &disk) else { panic!("the port is taken") };
    assert!(error.to_string().contains(&taken), "{error}");

    let mut host = Wire::connect(portals[1]);
    let tsih = host.login();
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    let data = pattern(8192, 5);
    assert_eq!(host.command(1, write10(8, 16), false, 8192, &data).0, 0);
    assert_eq!(host.command(2, read10(8, 16), true, 8192, &[]), (0, data.to_vec()));
    assert_eq!(host.command(3, read10(0, 4096), true, 2 << 20, &[]).1.len(), 2 << 20);

    let sessions = gateway.sessions();
    assert_eq!(sessions.len(), 1);
    let session = &sessions[0];
    assert_eq!((session.tsih, session.target.as_deref()), (tsih, Some(IQN)));
    assert_eq!((session.initiator.as_str(), session.commands), (INITIATOR, 4));
    assert_eq!((session.read_bytes, session.portal), (8192 + (2 << 20), portals[1]));
    assert!(session.since_unix_ms > 0);

    // The same identity again: the old connection is closed.
    let mut again = Wire::connect(portals[0]);
    let second = again.login();
    assert_ne!(second, tsih);
    assert!(host.next().is_none());

    assert!(!gateway.kick(tsih));
    assert!(gateway.kick(second));
    assert!(matches!(again.next(), Some((Reply::Async(_), _))));
    assert!(again.next().is_none());

    let mut last = Wire::connect(portals[0]);
    last.login();
    // Rubbish from another one does no harm.
    let mut rubbish = Wire::connect(portals[0]);
    rubbish.0.write_all(&[0xff; 4096]).unwrap();
    runtime.block_on(gateway.stop());
    assert!(matches!(last.next(), Some((Reply::Async(_), _))));
    assert!(last.next().is_none());
    assert!(gateway.sessions().is_empty());
    assert!(TcpStream::connect(portals[0]).is_err());
}

fn login_header(stage: u8, next_stage: u8) -> LoginRequest {
    LoginRequest { immediate: true, transit: true, stage, next_stage, ..LoginRequest::default() }
}

/// Guards requests that came together: each is answered, though the second waits for the first answer
/// to leave and nothing else comes after it.
#[test]
fn requests_that_come_together() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let gateway = start(&["127.0.0.1:0"], &Model::new(VOLUME_BYTES)).unwrap();
    let mut host = Wire::connect(gateway.portals()[0]);
    let who = keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]);
    let mut slices: Vec<Bytes> = Vec::new();
    Encoder::default().encode(login_header(0, 1).encode(), &[], &[who.into()], &mut slices);
    Encoder::default().encode(login_header(1, 3).encode(), &[], &[], &mut slices);
    host.0.write_all(&slices.concat()).unwrap();
    for stage in [0, 1] {
        let Some((Reply::Login(response), _)) = host.next() else { panic!() };
        assert_eq!((response.status, response.stage), (0, stage));
    }
    runtime.block_on(gateway.stop());
}

/// Guards the limit of unproven connections: discovery sessions, which prove nothing, count as well, and
/// neither they nor a full limit disturb a session that is there.
#[test]
fn discovery_sessions_are_limited() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let gateway = start(&["127.0.0.1:0"], &Model::new(VOLUME_BYTES)).unwrap();
    let portal = gateway.portals()[0];
    let mut host = Wire::connect(portal);
    host.login();
    let text = keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery")]);
    let mut sessions = Vec::new();
    for _ in 0..PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX {
        let mut session = Wire::connect(portal);
        session.send(login_header(1, 3).encode(), &text);
        assert!(matches!(session.next(), Some((Reply::Login(response), _)) if response.status == 0));
        sessions.push(session);
    }
    let mut refused = Wire::connect(portal);
    assert!(matches!(refused.0.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    drop(sessions);
    runtime.block_on(gateway.stop());
}

/// Guards the shell's part in the reinstatement of a connection: the session is handed over, listed once, with
/// its counters, under the new address.
#[test]
fn reinstated_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let gateway = start(&["127.0.0.1:0"], &Model::new(VOLUME_BYTES)).unwrap();
    let portal = gateway.portals()[0];
    let mut host = Wire::connect(portal);
    let tsih = host.login();
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    for round in 1..20 {
        let mut again = Wire::connect(portal);
        let request = LoginRequest { tsih, cmd_sn: Serial(round), ..login_header(1, 3) };
        again.send(request.encode(), &keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]));
        let Some((Reply::Login(response), _)) = again.next() else { panic!() };
        assert_eq!((response.status, response.tsih), (0, tsih));
        assert!(host.next().is_none());
        assert_eq!(again.command(round, [0; 16], false, 0, &[]).0, 0);
        let sessions = gateway.sessions();
        assert_eq!(sessions.len(), 1);
        assert_eq!((sessions[0].tsih, sessions[0].commands), (tsih, u64::from(round) + 1));
        assert_eq!(sessions[0].initiator_address, again.0.local_addr().unwrap());
        host = again;
    }
    assert!(gateway.kick(tsih));
    assert!(matches!(host.next(), Some((Reply::Async(_), _))));
    runtime.block_on(gateway.stop());
}

/// Guards a drain from the map to the wire: asked to log out, logins refused, and the gateway is empty then.
#[test]
fn drained_target() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let gateway = start(&["127.0.0.1:0"], &Model::new(VOLUME_BYTES)).unwrap();
    let portal = gateway.portals()[0];
    let mut host = Wire::connect(portal);
    host.login();
    let mut map = map();
    map.epoch = Epoch(2);
    map.volumes.remove(&VolumeId(2));
    map.targets.get_mut(&TargetId(1)).unwrap().draining = true;
    gateway.apply_map(&map);
    let Some((Reply::Async(message), _)) = host.next() else { panic!() };
    assert_eq!((message.event, message.parameter3), (1, 10));
    let mut late = Wire::connect(portal);
    late.send(login_header(1, 3).encode(), &keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]));
    assert!(matches!(late.next(), Some((Reply::Login(response), _)) if response.status == 0x0301));
    assert!(late.next().is_none());
    host.send(LogoutRequest { task_tag: 7, ..LogoutRequest::default() }.encode(), &[]);
    assert!(matches!(host.next(), Some((Reply::Logout(response), _)) if response.response == 0));
    assert!(host.next().is_none());
    runtime.block_on(gateway.stop());
    assert!(gateway.sessions().is_empty());
}

/// Guards the shell against a device that does not answer: pings, functions, and logins of others do not
/// wait for it, however much was asked of it.
#[test]
fn stalled_device() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let disk = Model::new(VOLUME_BYTES);
    let gateway = start(&["127.0.0.1:0"], &disk).unwrap();
    let portal = gateway.portals()[0];
    let mut host = Wire::connect(portal);
    host.login();
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    disk.hold();
    let data = pattern(65536, 1);
    for number in 1..=60 {
        let writes = number % 2 == 0;
        let command = ScsiCommand {
            is_final: true,
            read: !writes,
            write: writes,
            task_tag: number,
            expected_len: if writes { 65536 } else { 8 << 20 },
            cmd_sn: Serial(number),
            cdb: if writes { write10(0, 128) } else { read10(0, 16384) },
            ..ScsiCommand::default()
        };
        host.send(command.encode(), if writes { &data } else { &[] });
    }
    let nop =
        NopOut { immediate: true, task_tag: 99, transfer_tag: !0, cmd_sn: Serial(61), ..NopOut::default() };
    host.send(nop.encode(), b"here");
    assert!(matches!(host.next(), Some((Reply::NopIn(answer), _)) if answer.task_tag == 99));
    let function = TaskManagement {
        immediate: true,
        function: 1,
        task_tag: 100,
        referenced_tag: 0xdead,
        cmd_sn: Serial(61),
        ref_cmd_sn: Serial(3),
        ..TaskManagement::default()
    };
    host.send(function.encode(), &[]);
    assert!(matches!(host.next(), Some((Reply::TaskManagement(answer), _)) if answer.response == 1));
    let mut other = Wire::connect(portal);
    let request = LoginRequest { isid: [9; 6], ..login_header(1, 3) };
    other.send(request.encode(), &keys(&[("InitiatorName", INITIATOR), ("TargetName", IQN)]));
    assert!(matches!(other.next(), Some((Reply::Login(response), _)) if response.status == 0));
    disk.release();
    let mut ended = 0;
    while ended < 60 {
        match host.next() {
            Some((Reply::DataIn(data_in), _)) => ended += usize::from(data_in.has_status),
            Some((Reply::ScsiResponse(response), _)) => {
                assert_eq!(response.status, 0);
                ended += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    runtime.block_on(gateway.stop());
}

/// Guards sanitize operations: one that a restart interrupted goes on by itself, one that is waited for is answered
/// at its end, and one that fails says so until it is left.
#[test]
fn sanitizes() {
    const AUSE: u8 = 0x20;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let disk = Model::new(VOLUME_BYTES);
    disk.fill(7);
    let keeper = Keeper::default();
    let kind = SanitizeKind::BlockErase;
    keeper.change(1, |unit| {
        unit.sanitize = Some(Sanitize { kind, unrestricted_exit: false, has_failed: false });
    });
    disk.hold();
    let (gateway, disks) = start_with(&["127.0.0.1:0"], &disk, keeper).unwrap();
    let mut host = Wire::connect(gateway.portals()[0]);
    host.login();
    let mut cmd_sn = 0;
    let mut next = || {
        cmd_sn += 1;
        cmd_sn - 1
    };
    assert_eq!(host.command(next(), [0; 16], false, 0, &[]).0, 2, "POWER ON");
    assert_eq!(host.command(next(), [0; 16], false, 0, &[]).0, 2, "it goes on");
    disk.release();
    while host.command(next(), [0; 16], false, 0, &[]).0 != 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(host.command(next(), read10(100, 16), true, 8192, &[]), (0, vec![0; 8192]));
    assert_eq!(disks.keeper.units()[&VolumeId(1)].sanitize, None);

    let sanitize = |action: u8, len: u8| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[8]) = (0x48, action, len);
        cdb
    };
    let list = [0x01, 0, 0, 2, 0xaa, 0xbb];
    assert_eq!(host.command(next(), sanitize(0x01, 6), false, 6, &list).0, 0);
    let last = host.command(next(), read10(32767, 1), true, 512, &[]);
    assert_eq!(last, (0, [0xaa, 0xbb].repeat(256)));

    disk.fail_next(DeviceError::NoSpace);
    assert_eq!(host.command(next(), sanitize(AUSE | 0x02, 0), false, 0, &[]).0, 2);
    assert_eq!(host.command(next(), [0; 16], false, 0, &[]).0, 2);
    assert_eq!(host.command(next(), sanitize(0x1f, 0), false, 0, &[]).0, 0);
    assert_eq!(host.command(next(), [0; 16], false, 0, &[]).0, 0);
    runtime.block_on(gateway.stop());
}

/// Guards a unit whose sanitize operation another gateway has ended: who waits for it here is answered, and what
/// initiators have written since is not overwritten by what this gateway had still to do.
#[test]
fn sanitize_ended_by_another_gateway() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let disk = Model::new(VOLUME_BYTES);
    let (gateway, disks) = start_with(&["127.0.0.1:0"], &disk, Keeper::default()).unwrap();
    let mut host = Wire::connect(gateway.portals()[0]);
    host.login();
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    disk.fill(0xee);
    disk.hold();
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[8]) = (0x48, 0x01, 5);
    let command = ScsiCommand {
        is_final: true,
        write: true,
        task_tag: 1,
        expected_len: 5,
        cmd_sn: Serial(1),
        cdb,
        ..ScsiCommand::default()
    };
    host.send(command.encode(), &[0x01, 0, 0, 1, 0xaa]);
    while disk.held() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    disks.keeper.change(1, |unit| unit.sanitize = None);
    let mut map = map();
    map.volumes.remove(&VolumeId(2));
    (map.epoch, map.units) = (Epoch(2), disks.keeper.units());
    gateway.learn(&map);
    gateway.apply_map(&map);
    disk.release();
    let Some((Reply::ScsiResponse(response), _)) = host.next() else { panic!() };
    assert_eq!((response.task_tag, response.status), (1, 0));
    assert_eq!(disk.read(0, 1), [0xaa], "what it was about then");
    assert_eq!(disk.read(8 << 20, 8 << 20), vec![0xee; 8 << 20]);
    runtime.block_on(gateway.stop());
}
