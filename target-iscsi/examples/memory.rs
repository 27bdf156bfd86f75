//! Serves one volume in memory: for trying initiators against the front end alone.
//!
//!     cargo run -p lunette-target-iscsi --example memory -- 127.0.0.1:3260 [MIB] [block size]
//!     iscsi-inq iscsi://127.0.0.1:3260/iqn.2026-11.io.lunette:memory/0

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lunette_proto::ids::{ClusterId, Epoch, GatewayId, Generation, PoolId, TargetId, VolumeId};
use lunette_proto::map::{ClusterMap, Lun, Sealed, Target, Volume, VolumeState};
use lunette_target_iscsi::exports::{Change, Devices, KeepError};
use lunette_target_iscsi::server::{Gateway, GatewayConfig};
use lunette_target_iscsi::session::Secrets;
use lunette_volume::device::{
    BlockDevice, Command, Completions, Data, DeviceError, MAPPED, Outcome, Readiness,
};
use parking_lot::RwLock;
use zeroize::Zeroizing;

struct Memory(RwLock<Vec<u8>>);

impl Memory {
    fn carry_out(&self, command: Command) -> Outcome {
        let range = |offset: u64, len: u64, size: usize| {
            let end =
                offset.checked_add(len).filter(|end| *end <= size as u64).ok_or(DeviceError::OutOfRange)?;
            Ok::<_, DeviceError>(offset as usize..end as usize)
        };
        match command {
            Command::Read { offset, len } => {
                let memory = self.0.read();
                let range = range(offset, len.into(), memory.len())?;
                return Ok(Data::from_iter([Bytes::copy_from_slice(&memory[range])]));
            }
            Command::Write { offset, data, .. } => {
                let mut memory = self.0.write();
                let range = range(offset, data.len() as u64, memory.len())?;
                memory[range].copy_from_slice(&data);
            }
            Command::Zero { offset, len } => {
                let mut memory = self.0.write();
                let range = range(offset, len, memory.len())?;
                memory[range].fill(0);
            }
            Command::Flush => {}
            Command::CompareAndWrite { offset, compare, data, .. } => {
                let mut memory = self.0.write();
                let range = range(offset, compare.len() as u64, memory.len())?;
                let differs =
                    compare.iter().zip(&memory[range.clone()]).position(|(want, have)| want != have);
                if let Some(at) = differs {
                    return Err(DeviceError::Miscompare { at: at as u32 });
                }
                memory[range].copy_from_slice(&data);
            }
            Command::Or { offset, data, .. } => {
                let mut memory = self.0.write();
                let range = range(offset, data.len() as u64, memory.len())?;
                memory[range].iter_mut().zip(&data).for_each(|(byte, bits)| *byte |= bits);
            }
            Command::Mapping { offset, len } => {
                let range = range(offset, len, self.0.read().len())?;
                let blocks = range.end.div_ceil(4096) - range.start / 4096;
                return Ok(Data::from_iter([vec![MAPPED; blocks].into()]));
            }
        }
        Ok(Data::new())
    }
}

impl BlockDevice for Memory {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        to.complete(tag, self.carry_out(command));
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }
}

struct One(Arc<Memory>);

impl Devices for One {
    fn device(&self, _volume: VolumeId) -> Option<Arc<dyn BlockDevice>> {
        Some(Arc::clone(&self.0) as _)
    }

    fn keep(&self, _: VolumeId, _: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>) {
        done(Err(KeepError::Unavailable("nothing is kept here".into())));
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
    let mib: usize = arguments.next().map_or(256, |text| text.parse().expect("MIB is a number"));
    let block_bytes = arguments.next().map_or(512, |text| text.parse().expect("the block size is a number"));
    let volume = Volume {
        id: VolumeId(1),
        name: "memory".into(),
        pool: PoolId(1),
        size_bytes: (mib as u64) << 20,
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
        luns: BTreeMap::from([(0, Lun { volume: volume.id, read_only: false })]),
        acls: Vec::new(),
        chap: None,
        draining: false,
    };
    let map = ClusterMap {
        epoch: Epoch(1),
        cluster: ClusterId(1),
        volumes: BTreeMap::from([(volume.id, volume)]),
        targets: BTreeMap::from([(target.id, target)]),
        ..ClusterMap::default()
    };
    let config = GatewayConfig { id: GatewayId(1), name: "memory".into(), tag: 1, portals: vec![portal] };
    let memory = Arc::new(Memory(RwLock::new(BytesMut::zeroed(mib << 20).into())));
    let gateway =
        Gateway::start(config, Arc::new(One(memory)), Arc::new(NoSecrets), &map).expect("it starts");
    println!("{:?}", gateway.portals());
    std::future::pending::<()>().await;
}
