//! The state machine: applies what is committed, durably, and then shows it.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftSnapshotBuilder, SnapshotMeta,
    StorageError,
};
use redb::{Database, ReadableDatabase as _};

use super::log::raft_error;
use super::rows::{Head, Shared, all_changes, decode_snapshot, encode_snapshot, write_change, write_pools};
use super::{META, SNAPSHOT, STATE, Store, StoreError, decode, encode, write};
use crate::published::Published;
use crate::raft::{BasicNode, Entry, Outcome, Response, StoredMembership, TypeConfig};
use crate::state::{MapDelta, NextIds, State};

type Meta = SnapshotMeta<u64, BasicNode>;

/// How far the state has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Progress {
    pub(crate) applied: Option<LogId<u64>>,
    pub(crate) membership: StoredMembership,
}

/// See the module.
pub(crate) struct Machine {
    store: Store,
    state: State,
    progress: Progress,
    published: Arc<Published>,
}

impl Machine {
    pub(crate) fn new(store: Store, state: State, progress: Progress, published: Arc<Published>) -> Self {
        Self { store, state, progress, published }
    }

    /// Applies to the state in memory: what the entry's proposer learns, and the step that it made.
    fn apply_one(&mut self, entry: Entry, steps: &mut Vec<(MapDelta, NextIds)>) -> Outcome {
        self.progress.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => {
                Outcome::Applied { epoch: self.state.map().epoch, response: Response::Done }
            }
            EntryPayload::Membership(membership) => {
                self.progress.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Applied { epoch: self.state.map().epoch, response: Response::Done }
            }
            EntryPayload::Normal(command) => match self.state.apply(&command) {
                Ok(applied) => {
                    if let Some(delta) = applied.delta {
                        steps.push((delta, self.state.next_ids()));
                    }
                    Outcome::Applied { epoch: applied.epoch, response: applied.response }
                }
                Err(rejection) => Outcome::Rejected(rejection),
            },
        }
    }
}

fn machine_error(verb: ErrorVerb, error: &StoreError) -> StorageError<u64> {
    raft_error(ErrorSubject::StateMachine, verb, error)
}

fn snapshot_error(verb: ErrorVerb, error: &StoreError) -> StorageError<u64> {
    raft_error(ErrorSubject::Snapshot(None), verb, error)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership), StorageError<u64>> {
        Ok((self.progress.applied, self.progress.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut steps = Vec::new();
        let outcomes = entries.into_iter().map(|entry| self.apply_one(entry, &mut steps)).collect();

        let (head, progress) = (Head::of(&self.state), self.progress.clone());
        let steps = Arc::new(steps);
        let durable = Arc::clone(&steps);
        let edited = steps.iter().flat_map(|(delta, _)| &delta.changes).filter_map(|change| change.edits());
        let edited: BTreeMap<_, _> =
            edited.map(|id| (id, self.state.map().pools.get(&id).cloned())).collect();
        let commit = move |database: &Database| {
            write(database, |transaction| {
                let mut rows = transaction.open_table(STATE)?;
                for change in durable.iter().flat_map(|(delta, _)| &delta.changes) {
                    write_change(&mut rows, change)?;
                }
                write_pools(&mut rows, &edited)?;
                write_progress(transaction, &head, &progress)
            })
        };
        // If this fails, Raft stops and nobody sees the state in memory, which is ahead of the disk.
        self.store.run(commit).await.map_err(|error| machine_error(ErrorVerb::Write, &error))?;
        for (delta, next) in steps.iter() {
            self.published.advance(delta, *next);
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // The published state is this one: it is replaced only here, and only behind the commit.
        let state = self.published.state();
        Builder { store: self.store.clone(), state, progress: self.progress.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let data = snapshot.into_inner();
        let state = decode_snapshot(&data).map_err(|error| snapshot_error(ErrorVerb::Read, &error))?;
        let progress = Progress { applied: meta.last_log_id, membership: meta.last_membership.clone() };

        let head = Head::of(&state);
        let (meta, durable, kept) = (meta.clone(), progress.clone(), state.clone());
        let install = move |database: &Database| {
            write(database, |transaction| {
                let mut rows = transaction.open_table(STATE)?;
                rows.retain(|_, _| false)?;
                for change in all_changes(kept.map()) {
                    write_change(&mut rows, &change)?;
                }
                write_progress(transaction, &head, &durable)?;
                write_snapshot(transaction, &meta, &data)
            })
        };
        self.store.run(install).await.map_err(|error| snapshot_error(ErrorVerb::Write, &error))?;
        self.state = state.clone();
        self.progress = progress;
        self.published.replace(state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<u64>> {
        let read = |database: &Database| {
            let table = database.begin_read()?.open_table(SNAPSHOT)?;
            let (Some(meta), Some(data)) = (table.get("meta")?, table.get("data")?) else { return Ok(None) };
            let meta: Meta = decode(meta.value(), "the snapshot's meta data")?;
            Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(data.value().to_vec())) }))
        };
        self.store.run(read).await.map_err(|error| snapshot_error(ErrorVerb::Read, &error))
    }
}

/// Builds a snapshot of the state as it was when the builder was made.
pub(crate) struct Builder {
    store: Store,
    state: Shared,
    progress: Progress,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        let last = self.progress.applied;
        let meta = Meta {
            last_log_id: last,
            last_membership: self.progress.membership.clone(),
            snapshot_id: uuid::Uuid::new_v4().to_string(),
        };
        let (state, kept) = (Arc::clone(&self.state), meta.clone());
        let build = move |database: &Database| {
            let data = encode_snapshot(&state)?;
            write(database, |transaction| write_snapshot(transaction, &kept, &data))?;
            Ok(data)
        };
        let data = self.store.run(build).await.map_err(|error| snapshot_error(ErrorVerb::Write, &error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

fn write_progress(
    transaction: &redb::WriteTransaction,
    head: &Head,
    progress: &Progress,
) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert("head", encode(head)?.as_slice())?;
    meta.insert("applied", encode(progress)?.as_slice())?;
    Ok(())
}

fn write_snapshot(transaction: &redb::WriteTransaction, meta: &Meta, data: &[u8]) -> Result<(), StoreError> {
    let mut table = transaction.open_table(SNAPSHOT)?;
    table.insert("meta", encode(meta)?.as_slice())?;
    table.insert("data", data)?;
    Ok(())
}
