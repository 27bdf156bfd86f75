//! The grants of a disk, with a clock, and how they hold seals back.
//!
//! A grant is recorded first and checked against the sealed generation then; a seal is durable first, and looks for grants
//! then: of the two, whichever comes last sees the other.

use std::sync::Arc;
use std::time::Instant;

use lunette_proto::ids::{Epoch, Generation, Namespace};
use lunette_proto::limits::GRANT_MS_MAX;
use lunette_proto::node::{Failure, Replies, Reply, ReplyBody};
use parking_lot::Mutex;

use super::Shared;
use crate::engine::{Completion, GrantQuery, Operation};
use crate::grants::Grants;

/// The grants of a disk.
#[derive(Debug)]
pub(super) struct Granting {
    /// Nobody else has had the disk since. The clock may stand still while the machine sleeps: that is on the safe side.
    opened: Instant,
    grants: Mutex<Grants>,
}

impl Granting {
    /// Of a disk that nobody else has had since `opened`, with the namespaces that it has sealed.
    pub(super) fn new(opened: Instant, sealed: impl IntoIterator<Item = Namespace>) -> Self {
        Self { opened, grants: Mutex::new(Grants::new(0, sealed)) }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Has the answer to a seal wait until no older owner acts, and forgets what is deleted.
    pub(super) fn watch(self: &Arc<Self>, operation: &Operation, done: Completion) -> Completion {
        let (namespace, seals) = match operation {
            Operation::Seal { namespace, generation } => (*namespace, Some(*generation)),
            Operation::Delete { namespace, .. } => (*namespace, None),
            _ => return done,
        };
        let watched = Watched { granting: self.clone(), namespace, seals, done: Mutex::new(Some(done)) };
        Completion::new(0, Arc::new(watched))
    }

    fn answer(&self, namespace: Namespace, seals: Option<Generation>, reply: Reply) -> Reply {
        match (&reply, seals) {
            (Ok(ReplyBody::Sealed(_)), Some(generation)) => {
                let now_ms = self.now_ms();
                let left_ms = self.grants.lock().left_ms(now_ms, namespace, generation);
                left_ms.map_or(reply, |left_ms| Err(Failure::Granted { left_ms }))
            }
            (Ok(_), None) => {
                self.grants.lock().deleted(namespace);
                reply
            }
            _ => reply,
        }
    }
}

/// Looks at the answer to a seal or a deletion.
struct Watched {
    granting: Arc<Granting>,
    namespace: Namespace,
    seals: Option<Generation>,
    done: Mutex<Option<Completion>>,
}

impl Replies for Watched {
    fn reply(&self, _: u64, reply: Reply) {
        if let Some(done) = self.done.lock().take() {
            done.complete(self.granting.answer(self.namespace, self.seals, reply));
        }
    }
}

impl Shared {
    pub(super) fn grant(&self, epoch: Epoch, query: GrantQuery) -> Reply {
        let GrantQuery { namespace, generation, number, for_ms } = query;
        if for_ms > GRANT_MS_MAX {
            return Err(Failure::Invalid);
        }
        let check = || {
            if self.is_failed() {
                return Err(Failure::DiskFailed);
            }
            self.view.check(namespace, generation, epoch)
        };
        // Who is refused anyway keeps nobody waiting, and leaves no record.
        check()?;
        let now_ms = self.granting.now_ms();
        self.granting.grants.lock().grant(now_ms, namespace, generation, number, for_ms);
        check().map(|()| ReplyBody::Done)
    }
}
