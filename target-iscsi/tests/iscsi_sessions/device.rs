//! A device in memory that can hold its completions back.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use lunette_volume::device::{
    BlockDevice, Command, Completions, Data, DeviceError, MAPPED, Outcome, Readiness,
};
use parking_lot::Mutex;

type Held = (Command, u64, Arc<dyn Completions>);

#[derive(Default)]
pub(crate) struct Model {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    memory: Vec<u8>,
    /// Commands wait for [`Model::release`] and have had no effect.
    holding: bool,
    held: Vec<Held>,
    /// Bytes that reads have given.
    read_bytes: usize,
    /// Addresses of the data of writes.
    write_addresses: Vec<usize>,
    /// What the next commands end with, instead of happening.
    failures: VecDeque<DeviceError>,
}

impl Model {
    pub(crate) fn new(len: usize) -> Arc<Self> {
        let state = State { memory: vec![0; len], ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// All of it becomes `byte`.
    pub(crate) fn fill(&self, byte: u8) {
        self.state.lock().memory.fill(byte);
    }

    pub(crate) fn hold(&self) {
        self.state.lock().holding = true;
    }

    pub(crate) fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Carries out what was held, in order.
    pub(crate) fn release(&self) {
        let held = {
            let mut state = self.state.lock();
            state.holding = false;
            std::mem::take(&mut state.held)
        };
        for (command, tag, to) in held {
            self.submit(command, tag, &to);
        }
    }

    /// The next command fails and changes nothing.
    pub(crate) fn fail_next(&self, error: DeviceError) {
        self.state.lock().failures.push_back(error);
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        self.state.lock().memory[offset..offset + len].to_vec()
    }

    pub(crate) fn read_bytes(&self) -> usize {
        self.state.lock().read_bytes
    }

    pub(crate) fn write_addresses(&self) -> Vec<usize> {
        self.state.lock().write_addresses.clone()
    }
}

impl State {
    fn carry_out(&mut self, command: Command) -> Outcome {
        if let Some(error) = self.failures.pop_front() {
            return Err(error);
        }
        let size = self.memory.len() as u64;
        let range = |offset: u64, len: u64| {
            let end = offset.checked_add(len).filter(|end| *end <= size).ok_or(DeviceError::OutOfRange)?;
            Ok::<_, DeviceError>(offset as usize..end as usize)
        };
        match command {
            Command::Read { offset, len } => {
                let range = range(offset, len.into())?;
                let middle = range.start + range.len() / 3;
                self.read_bytes += range.len();
                // Two slices, as a volume's extents give them.
                let parts = [&self.memory[range.start..middle], &self.memory[middle..range.end]];
                return Ok(parts.into_iter().map(Bytes::copy_from_slice).collect());
            }
            Command::Write { offset, data, .. } | Command::WriteAtomic { offset, data } => {
                let range = range(offset, data.len() as u64)?;
                self.write_addresses.push(data.as_ptr() as usize);
                self.memory[range].copy_from_slice(&data);
            }
            Command::Zero { offset, len } => {
                let range = range(offset, len)?;
                self.memory[range].fill(0);
            }
            Command::Flush => {}
            Command::CompareAndWrite { offset, compare, data, .. } => {
                let range = range(offset, compare.len() as u64)?;
                let differs =
                    compare.iter().zip(&self.memory[range.clone()]).position(|(want, have)| want != have);
                if let Some(at) = differs {
                    return Err(DeviceError::Miscompare { at: at as u32 });
                }
                self.memory[range].copy_from_slice(&data);
            }
            Command::Or { offset, data, .. } => {
                let range = range(offset, data.len() as u64)?;
                self.memory[range].iter_mut().zip(&data).for_each(|(byte, bits)| *byte |= bits);
            }
            Command::Mapping { offset, len } => {
                let range = range(offset, len)?;
                let blocks = range.end.div_ceil(4096) - range.start / 4096;
                return Ok(Data::from_iter([vec![MAPPED; blocks].into()]));
            }
        }
        Ok(Data::new())
    }
}

impl BlockDevice for Model {
    fn submit(&self, command: Command, tag: u64, to: &Arc<dyn Completions>) {
        let outcome = {
            let mut state = self.state.lock();
            if state.holding {
                state.held.push((command, tag, Arc::clone(to)));
                return;
            }
            state.carry_out(command)
        };
        to.complete(tag, outcome);
    }

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }
}
