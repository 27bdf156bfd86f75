//! Serves volumes in memory, one if nothing else is said: for trying initiators against the front end alone.
//!
//!     cargo run -p lunette-target-iscsi --example memory -- 127.0.0.1:3260 [MIB] [block size] [read-only|writable] [volumes]
//!     iscsi-inq iscsi://127.0.0.1:3260/iqn.2026-11.io.lunette:memory/0

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use lunette_proto::ids::{ClusterId, Epoch, GatewayId, Generation, PoolId, TargetId, VolumeId};
use lunette_proto::limits::BLOCK_BYTES;
use lunette_proto::map::{ClusterMap, Lun, Sealed, Target, Volume, VolumeState};
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_target_iscsi::server::{Gateway, GatewayConfig};
use lunette_target_iscsi::session::Secrets;
use lunette_volume::device::{
    BlockDevice, Command, Completions, DEALLOCATED, Data, DeviceError, MAPPED, Outcome, Readiness,
};
use parking_lot::RwLock;
use zeroize::Zeroizing;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The blocks that something was written to; the others are holes.
struct Memory {
    size_bytes: u64,
    blocks: RwLock<BTreeMap<u64, Box<[u8]>>>,
}

/// Calls `part` for each block that the range touches, with the bytes of it that it touches, from its start.
fn parts(offset: u64, len: u64, mut part: impl FnMut(u64, Range<usize>)) {
    for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
        let (start, end) = (offset.max(block * BLOCK), (offset + len).min((block + 1) * BLOCK));
        part(block, (start - block * BLOCK) as usize..(end - block * BLOCK) as usize);
    }
}

impl Memory {
    fn carry_out(&self, command: Command) -> Outcome {
        let (offset, len) = match &command {
            Command::Read { offset, len } => (*offset, u64::from(*len)),
            Command::Zero { offset, len } | Command::Mapping { offset, len } => (*offset, *len),
            Command::Write { offset, data, .. }
            | Command::WriteAtomic { offset, data }
            | Command::Or { offset, data, .. }
            | Command::CompareAndWrite { offset, data, .. } => (*offset, data.len() as u64),
            Command::Flush => return Ok(Data::new()),
        };
        if offset.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            return Err(DeviceError::OutOfRange);
        }
        match command {
            Command::Read { .. } => return Ok(Data::from_iter([self.read(offset, len).into()])),
            Command::Mapping { .. } => {
                let blocks = self.blocks.read();
                let mut statuses = Vec::new();
                parts(offset, len, |block, _| {
                    statuses.push(if blocks.contains_key(&block) { MAPPED } else { DEALLOCATED });
                });
                return Ok(Data::from_iter([statuses.into()]));
            }
            Command::Write { data, .. } | Command::WriteAtomic { data, .. } => {
                self.change(offset, &data, |byte, new| *byte = new)
            }
            Command::Or { data, .. } => self.change(offset, &data, |byte, bits| *byte |= bits),
            Command::CompareAndWrite { compare, data, .. } => {
                let mut blocks = self.blocks.write();
                let block = blocks.entry(offset / BLOCK).or_insert_with(hole);
                let from = (offset % BLOCK) as usize;
                let have = &mut block[from..from + data.len()];
                if let Some(at) = compare.iter().zip(have.iter()).position(|(want, have)| want != have) {
                    return Err(DeviceError::Miscompare { at: at as u32 });
                }
                have.copy_from_slice(&data);
            }
            Command::Zero { .. } => {
                let mut blocks = self.blocks.write();
                let whole = offset.div_ceil(BLOCK)..(offset + len) / BLOCK;
                if whole.start < whole.end {
                    let mut rest = blocks.split_off(&whole.start);
                    blocks.append(&mut rest.split_off(&whole.end));
                }
                for block in [offset / BLOCK, (offset + len) / BLOCK] {
                    if let Some(bytes) = blocks.get_mut(&block) {
                        let (start, end) =
                            (offset.max(block * BLOCK), (offset + len).min((block + 1) * BLOCK));
                        if start < end {
                            bytes[(start - block * BLOCK) as usize..(end - block * BLOCK) as usize].fill(0);
                        }
                    }
                }
            }
            Command::Flush => {}
        }
        Ok(Data::new())
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let blocks = self.blocks.read();
        let mut data = Vec::with_capacity(len as usize);
        parts(offset, len, |block, range| match blocks.get(&block) {
            Some(bytes) => data.extend_from_slice(&bytes[range]),
            None => data.resize(data.len() + range.len(), 0),
        });
        data
    }

    fn change(&self, offset: u64, data: &[u8], how: impl Fn(&mut u8, u8)) {
        let mut blocks = self.blocks.write();
        let mut rest = data.iter();
        parts(offset, data.len() as u64, |block, range| {
            let bytes = &mut blocks.entry(block).or_insert_with(hole)[range];
            bytes.iter_mut().zip(rest.by_ref()).for_each(|(byte, new)| how(byte, *new));
        });
    }
}

fn hole() -> Box<[u8]> {
    vec![0; BLOCK as usize].into()
}

impl BlockDevice for Memory {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        to.complete(tag, self.carry_out(command));
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    /// One lock is held for the whole of a write.
    fn atomic_bytes(&self) -> u32 {
        1 << 20
    }
}

struct Memories(BTreeMap<VolumeId, Arc<Memory>>);

impl Devices for Memories {
    fn device(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        Some(Arc::clone(self.0.get(&volume)?) as _)
    }

    /// It lasts as long as the process, as the data does.
    fn keep(&self, _: VolumeId, _: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {
        done(Ok(()));
    }
}

struct NoSecrets;

impl Secrets for NoSecrets {
    fn unseal(&self, _sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let portal: SocketAddr =
        arguments.next().and_then(|text| text.parse().ok()).expect("ADDRESS:PORT is given");
    let mib: u64 = arguments.next().map_or(256, |text| text.parse().expect("MIB is a number"));
    let block_bytes = arguments.next().map_or(512, |text| text.parse().expect("the block size is a number"));
    let read_only = arguments.next().is_some_and(|text| text == "read-only");
    let count = arguments.next().map_or(1, |text| text.parse().expect("the number of volumes is a number"));
    let volume = |number: u16| Volume {
        id: VolumeId(u64::from(number) + 1),
        name: format!("memory{number}"),
        pool: PoolId(1),
        size_bytes: mib << 20,
        stripe: None,
        block_bytes,
        write_back: false,
        generation: Generation(1),
        owner: None,
        state: VolumeState::Active,
    };
    let target = Target {
        id: TargetId(1),
        iqn: "iqn.2026-11.io.lunette:memory".into(),
        luns: (0..count).map(|lun| (lun, Lun { volume: volume(lun).id, read_only })).collect(),
        acls: Vec::new(),
        chap: None,
        draining: false,
    };
    let map = ClusterMap {
        epoch: Epoch(1),
        cluster: ClusterId(1),
        volumes: (0..count).map(volume).map(|volume| (volume.id, volume)).collect(),
        targets: BTreeMap::from([(target.id, target)]),
        ..ClusterMap::default()
    };
    let config = GatewayConfig { id: GatewayId(1), name: "memory".into(), tag: 1, portals: vec![portal] };
    let memory = || Arc::new(Memory { size_bytes: mib << 20, blocks: RwLock::default() });
    let memories = Memories(map.volumes.keys().map(|id| (*id, memory())).collect());
    let gateway = Gateway::start(config, Arc::new(memories), Arc::new(NoSecrets), &map).expect("it starts");
    println!("{:?}", gateway.portals());
    std::future::pending::<()>().await;
}
