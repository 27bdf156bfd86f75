//! Vote and log.

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError,
    StorageIOError, Vote,
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _};

use super::{LOG, META, Store, StoreError, decode, encode, read_meta, write};
use crate::raft::{Entry, TypeConfig};

/// The log of a member.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Store,
}

impl LogStore {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

/// An error as openraft wants it.
pub(super) fn raft_error(
    subject: ErrorSubject<u64>,
    verb: ErrorVerb,
    error: &StoreError,
) -> StorageError<u64> {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

fn read_error(error: &StoreError) -> StorageError<u64> {
    raft_error(ErrorSubject::Logs, ErrorVerb::Read, error)
}

fn write_error(error: &StoreError) -> StorageError<u64> {
    raft_error(ErrorSubject::Logs, ErrorVerb::Write, error)
}

/// Commits entries, durably.
pub(super) fn commit_entries(database: &Database, entries: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
    write(database, |transaction| {
        let mut log = transaction.open_table(LOG)?;
        for (index, entry) in entries {
            log.insert(index, entry.as_slice())?;
        }
        Ok(())
    })
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let read = move |database: &Database| {
            let log = database.begin_read()?.open_table(LOG)?;
            let mut entries = Vec::new();
            for row in log.range(range)? {
                let (index, record) = row?;
                let entry: Entry = decode(record.value(), "an entry of the log")?;
                if entry.log_id.index != index.value() {
                    return Err(StoreError::Damaged { what: "an entry of the log under another's index" });
                }
                entries.push(entry);
            }
            Ok(entries)
        };
        self.store.run(read).await.map_err(|error| read_error(&error))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<u64>> {
        let read = |database: &Database| {
            let last_purged_log_id: Option<LogId<u64>> = read_meta(database, "purged")?;
            let log = database.begin_read()?.open_table(LOG)?;
            let last = match log.last()? {
                Some((_, record)) => Some(decode::<Entry>(record.value(), "an entry of the log")?.log_id),
                None => None,
            };
            Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
        };
        self.store.run(read).await.map_err(|error| read_error(&error))
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = *vote;
        let save = move |database: &Database| {
            write(database, |transaction| {
                transaction.open_table(META)?.insert("vote", encode(&vote)?.as_slice())?;
                Ok(())
            })
        };
        let error = |error| raft_error(ErrorSubject::Vote, ErrorVerb::Write, &error);
        self.store.run(save).await.map_err(error)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        let error = |error| raft_error(ErrorSubject::Vote, ErrorVerb::Read, &error);
        self.store.run(|database| read_meta(database, "vote")).await.map_err(error)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Result<Vec<(u64, Vec<u8>)>, StoreError> =
            entries.into_iter().map(|entry| Ok((entry.log_id.index, encode(&entry)?))).collect();
        let entries = entries.map_err(|error| write_error(&error))?;
        // Called by the store's thread, behind the commit.
        let flushed = Box::new(move |result| callback.log_io_completed(result));
        self.store.append(entries, flushed).await.map_err(|error| write_error(&error))
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        let truncate = move |database: &Database| {
            write(database, |transaction| {
                transaction.open_table(LOG)?.retain_in(log_id.index.., |_, _| false)?;
                Ok(())
            })
        };
        self.store.run(truncate).await.map_err(|error| write_error(&error))
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        let purge = move |database: &Database| {
            write(database, |transaction| {
                transaction.open_table(META)?.insert("purged", encode(&log_id)?.as_slice())?;
                transaction.open_table(LOG)?.retain_in(..=log_id.index, |_, _| false)?;
                Ok(())
            })
        };
        self.store.run(purge).await.map_err(|error| write_error(&error))
    }
}
