//! Logs many sessions in to a gateway in a process of its own, and says how fast that was and how much
//! memory each session holds: after its login, and after it has worked.
//!
//!     ulimit -n 20000
//!     cargo run --release -p lunette-target-iscsi --example sessions -- [COUNT] [chap]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{ClusterId, Epoch, GatewayId, Generation, PoolId, TargetId, VolumeId};
use lunette_proto::iscsi::initiator::{DataOut, LoginRequest, NopOut, ScsiCommand};
use lunette_proto::iscsi::{Bhs, Encoder, Framer, Pdu, Reply, Serial, TAG_NONE, text};
use lunette_proto::map::{
    Chap, ChapAlgorithm, ChapCredential, ClusterMap, Lun, Sealed, Target, Volume, VolumeState,
};
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_target_iscsi::server::{Gateway, GatewayConfig};
use lunette_target_iscsi::session::{Secrets, chap_response};
use lunette_volume::device::{BlockDevice, Command, Completions, Data, DeviceError, Outcome, Readiness};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore, mpsc};
use zeroize::Zeroizing;

const IQN: &str = "iqn.2026-11.io.lunette:many";
const SECRET: &[u8] = b"of every initiator";
/// Logins that run beside each other; a gateway takes 256 of one address.
const BESIDE: usize = 64;
/// Commands of a session that are outstanding when it works, half of them writes, of 4 KiB each.
const WORK: u32 = 32;

/// Reads zeros, forgets writes.
struct Void;

impl BlockDevice for Void {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        to.complete(tag, carry_out(&command));
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }
}

fn carry_out(command: &Command) -> Outcome {
    match command {
        Command::Read { len, .. } => Ok(Data::from_iter([Bytes::from(vec![0; *len as usize])])),
        Command::Write { .. } | Command::Zero { .. } | Command::Flush => Ok(Data::new()),
        _ => Err(DeviceError::Gone),
    }
}

struct Voids(Arc<Void>);

impl Devices for Voids {
    fn device(&self, _volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        Some(Arc::clone(&self.0) as _)
    }

    fn keep(&self, _: VolumeId, _: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {
        done(Err(KeepError::Unavailable("nothing is kept here".into())));
    }
}

/// Secrets that are sealed by nothing.
struct Open;

impl Secrets for Open {
    fn unseal(&self, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(sealed.0.clone()))
    }
}

fn map(with_chap: bool) -> ClusterMap {
    let volume = Volume {
        id: VolumeId(1),
        name: "void".into(),
        pool: PoolId(1),
        size_bytes: 1 << 30,
        stripe: None,
        block_bytes: 512,
        write_back: false,
        generation: Generation(1),
        owner: None,
        state: VolumeState::Active,
    };
    let chap = with_chap.then(|| Chap {
        initiator: ChapCredential { user: "host".into(), secret: Sealed(SECRET.to_vec()) },
        target: None,
        algorithms: ChapAlgorithm::ALL.to_vec(),
    });
    let target = Target {
        id: TargetId(1),
        iqn: IQN.into(),
        luns: BTreeMap::from([(0, Lun { volume: volume.id, read_only: false })]),
        acls: Vec::new(),
        chap,
        draining: false,
    };
    ClusterMap {
        epoch: Epoch(1),
        cluster: ClusterId(1),
        volumes: BTreeMap::from([(volume.id, volume)]),
        targets: BTreeMap::from([(target.id, target)]),
        ..ClusterMap::default()
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let with_chap = arguments.iter().any(|argument| argument == "chap");
    if arguments.iter().any(|argument| argument == "serve") {
        return serve(with_chap);
    }
    let count = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    load(count, with_chap).await;
}

fn serve(with_chap: bool) {
    let portals = vec!["127.0.0.1:0".parse().expect("an address")];
    let config = GatewayConfig { id: GatewayId(1), name: "void".into(), tag: 1, portals };
    let gateway = Gateway::start(config, Arc::new(Voids(Arc::new(Void))), Arc::new(Open), &map(with_chap))
        .expect("it starts");
    println!("{}", gateway.portals()[0]);
    tokio::task::block_in_place(|| std::io::stdin().read_to_end(&mut Vec::new())).expect("a pipe");
}

async fn load(count: usize, with_chap: bool) {
    let mut server = Process::new(std::env::current_exe().expect("a program"));
    server.arg("serve").args(with_chap.then_some("chap")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().expect("the gateway starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let portal: SocketAddr = line.trim().parse().expect("a portal");
    let pid = server.id();

    let empty = rss_kib(pid);
    let (logged_in, mut are_logged_in) = mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(BESIDE));
    let work = Arc::new(Barrier::new(count + 1));
    let begun = Instant::now();
    for number in 0..count {
        let (places, work, logged_in) = (Arc::clone(&places), Arc::clone(&work), logged_in.clone());
        tokio::spawn(async move {
            let place = places.acquire().await.expect("never closed");
            let asked = Instant::now();
            let mut session = Session::login(portal, number, with_chap).await;
            drop(place);
            let _ = logged_in.send(asked.elapsed());
            tokio::select! {
                () = session.answer_pings() => unreachable!("the gateway closed a session"),
                _ = work.wait() => {}
            }
            session.work().await;
            let _ = logged_in.send(Duration::ZERO);
            session.answer_pings().await;
        });
    }
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        latencies.extend(are_logged_in.recv().await);
    }
    let took = begun.elapsed();
    latencies.sort();
    println!(
        "{count} logins in {:.2} s: {:.0}/s, {BESIDE} beside each other; median {:.1} ms, longest {:.1} ms",
        took.as_secs_f64(),
        count as f64 / took.as_secs_f64(),
        latencies[count / 2].as_secs_f64() * 1e3,
        latencies[count - 1].as_secs_f64() * 1e3,
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let per_session = |rss: u64| rss.saturating_sub(empty) as f64 / count as f64;
    let idle = rss_kib(pid);
    println!("gateway: {empty} KiB empty, {idle} KiB logged in: {:.1} KiB a session", per_session(idle));
    let begun = Instant::now();
    work.wait().await;
    for _ in 0..count {
        are_logged_in.recv().await;
    }
    println!("{} commands of 4 KiB in {:.2} s", count * WORK as usize, begun.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let worked = rss_kib(pid);
    println!("{worked} KiB after work: {:.1} KiB a session", per_session(worked));
    tokio::time::sleep(Duration::from_secs(25)).await;
    let later = rss_kib(pid);
    println!("{later} KiB after two rounds of pings: {:.1} KiB a session", per_session(later));
    drop(server.stdin.take());
    server.wait().expect("the gateway ends");
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

struct Session {
    stream: TcpStream,
    received: BytesMut,
    cmd_sn: Serial,
}

impl Session {
    async fn login(portal: SocketAddr, number: usize, with_chap: bool) -> Self {
        let stream = TcpStream::connect(portal).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        let mut session = Self { stream, received: BytesMut::new(), cmd_sn: Serial(1) };
        let mut isid = [0x80, 0, 0, 0, 0, 0];
        isid[2..].copy_from_slice(&u32::try_from(number).expect("few").to_be_bytes());
        let request =
            LoginRequest { immediate: true, isid, cmd_sn: Serial(1), task_tag: 1, ..LoginRequest::default() };
        let name = format!("iqn.2026-11.org.example:host{}", number / 100);
        let who = [("InitiatorName", name.as_str()), ("TargetName", IQN), ("SessionType", "Normal")];
        let method = ("AuthMethod", if with_chap { "CHAP,None" } else { "None" });
        let security = LoginRequest { transit: true, stage: 0, next_stage: 1, ..request };
        session.step(&security, &[who.as_slice(), &[method]].concat()).await;
        if with_chap {
            let challenge =
                session.step(&LoginRequest { transit: false, ..security }, &[("CHAP_A", "8,7,5")]).await;
            let find = |key: &str| {
                let pairs = text::parse(&challenge).expect("text");
                pairs.into_iter().find(|(name, _)| *name == key).expect("a key").1
            };
            let digits = find("CHAP_C").trim_start_matches("0x");
            let bytes: Vec<u8> = (0..digits.len() / 2)
                .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("digits"))
                .collect();
            let id = find("CHAP_I").parse().expect("a number");
            let proof = chap_response(ChapAlgorithm::Sha3_256, id, SECRET, &bytes);
            let proof = proof.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"));
            session.step(&security, &[("CHAP_N", "host"), ("CHAP_R", &proof)]).await;
        }
        let keys = [
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("MaxBurstLength", "16776192"),
            ("FirstBurstLength", "262144"),
        ];
        session.step(&LoginRequest { transit: true, stage: 1, next_stage: 3, ..request }, &keys).await;
        session
    }

    async fn step(&mut self, request: &LoginRequest, pairs: &[(&str, &str)]) -> Bytes {
        let mut out = BytesMut::new();
        for (key, value) in pairs {
            text::push(&mut out, key, value);
        }
        self.send(request.encode(), out.freeze()).await;
        let (reply, pdu) = self.next().await.expect("an answer");
        assert!(matches!(reply, Reply::Login(response) if response.status == 0), "{reply:?}");
        pdu.data
    }

    /// Until the connection is closed.
    async fn answer_pings(&mut self) {
        while let Some((reply, _)) = self.next().await {
            self.answer(&reply).await;
        }
    }

    async fn answer(&mut self, reply: &Reply) {
        if let Reply::NopIn(ping) = reply {
            let answer = NopOut {
                immediate: true,
                lun: ping.lun,
                task_tag: TAG_NONE,
                transfer_tag: ping.transfer_tag,
                cmd_sn: self.cmd_sn,
                ..NopOut::default()
            };
            self.send(answer.encode(), Bytes::new()).await;
        }
    }

    /// Some reads and writes at once; the first of them reports a unit attention.
    async fn work(&mut self) {
        for number in 0..WORK {
            let writes = number % 2 == 1;
            let mut cdb = [0; 16];
            (cdb[0], cdb[8]) = (if writes { 0x2a } else { 0x28 }, 8);
            let command = ScsiCommand {
                is_final: true,
                read: !writes,
                write: writes,
                task_tag: number,
                expected_len: 4096,
                cmd_sn: self.cmd_sn.take(),
                cdb,
                ..ScsiCommand::default()
            };
            let data = if writes { Bytes::from_static(&[7; 4096]) } else { Bytes::new() };
            self.send(command.encode(), data).await;
        }
        let mut ended = 0;
        while ended < WORK {
            let (reply, _) = self.next().await.expect("an answer");
            match &reply {
                Reply::DataIn(data_in) => ended += u32::from(data_in.has_status),
                Reply::ScsiResponse(_) => ended += 1,
                Reply::R2t(r2t) => {
                    let out = DataOut {
                        is_final: true,
                        task_tag: r2t.task_tag,
                        transfer_tag: r2t.transfer_tag,
                        offset: r2t.offset,
                        ..DataOut::default()
                    };
                    self.send(out.encode(), Bytes::from(vec![7; r2t.desired_len as usize])).await;
                }
                other => self.answer(other).await,
            }
        }
    }

    async fn send(&mut self, bhs: Bhs, data: Bytes) {
        let mut slices: Vec<Bytes> = Vec::new();
        Encoder::default().encode(bhs, &[], &[data], &mut slices);
        self.stream.write_all(&slices.concat()).await.expect("a connection");
    }

    async fn next(&mut self) -> Option<(Reply, Pdu)> {
        loop {
            if let Some(pdu) = Framer::new(1 << 24).next(&mut self.received).expect("PDUs") {
                return Some((Reply::decode(&pdu.bhs), pdu));
            }
            if self.stream.read_buf(&mut self.received).await.ok()? == 0 {
                return None;
            }
        }
    }
}
