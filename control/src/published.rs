//! The committed state as readers see it: the newest one, and the last steps to it.
//!
//! ```text
//! state machine --advance--> state, history of deltas, epoch   <--next_update-- watcher
//! ```
//!
//! A watcher asks for what follows the epoch it has. It gets the next delta while the history goes back
//! that far, and a whole map otherwise; so a watcher that lags costs no memory, and no epoch can be
//! missed without the watcher getting a map that contains it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use lunette_proto::ids::Epoch;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::state::{MapDelta, NextIds, State};

/// Deltas that are kept for watchers, in number and in bytes.
const HISTORY_MAX: usize = 4096;
const HISTORY_BYTES_MAX: usize = 32 << 20;

/// See the module.
pub struct Published {
    inner: Mutex<Inner>,
    epoch: watch::Sender<Epoch>,
}

struct Inner {
    state: Arc<State>,
    /// The last deltas, encoded, without gaps; the last leads to the state.
    history: VecDeque<Bytes>,
    history_bytes: usize,
    /// The whole map, encoded, if a watcher has asked for it since it changed.
    whole: Option<Bytes>,
}

/// What a watcher is to be told next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// postcard of the map at this epoch.
    Whole(Epoch, Bytes),
    /// postcard of the delta that leads to this epoch.
    Delta(Epoch, Bytes),
}

impl Published {
    /// Starts with a state that was loaded.
    #[must_use]
    pub fn new(state: State) -> Self {
        let epoch = watch::Sender::new(state.map().epoch);
        let inner = Inner { state: Arc::new(state), history: VecDeque::new(), history_bytes: 0, whole: None };
        Self { inner: Mutex::new(inner), epoch }
    }

    /// The newest state.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.inner.lock().state)
    }

    /// The newest epoch, and every rise of it.
    #[must_use]
    pub fn epochs(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }

    /// Makes a committed step visible.
    pub(crate) fn advance(&self, delta: &MapDelta, next: NextIds) {
        let mut inner = self.inner.lock();
        Arc::make_mut(&mut inner.state).advance(delta, next);
        inner.whole = None;
        inner.remember(delta);
        drop(inner);
        self.epoch.send_replace(delta.epoch);
    }

    /// Replaces everything by a snapshot.
    pub(crate) fn replace(&self, state: State) {
        let epoch = state.map().epoch;
        let mut inner = self.inner.lock();
        inner.state = Arc::new(state);
        inner.forget();
        inner.whole = None;
        drop(inner);
        self.epoch.send_replace(epoch);
    }

    /// What follows `have` (0: nothing at all), or `None` if that is the newest or newer.
    pub fn next_update(&self, have: Epoch) -> Result<Option<Update>, postcard::Error> {
        let mut inner = self.inner.lock();
        let now = inner.state.map().epoch;
        if have >= now {
            return Ok(None);
        }
        let behind = usize::try_from(now.0 - have.0).unwrap_or(usize::MAX);
        if have.0 > 0 && behind <= inner.history.len() {
            let index = inner.history.len() - behind;
            return Ok(Some(Update::Delta(Epoch(have.0 + 1), inner.history[index].clone())));
        }
        let whole = match &inner.whole {
            Some(whole) => whole.clone(),
            None => {
                let whole = Bytes::from(postcard::to_allocvec(inner.state.map())?);
                inner.whole = Some(whole.clone());
                whole
            }
        };
        Ok(Some(Update::Whole(now, whole)))
    }
}

impl Inner {
    fn remember(&mut self, delta: &MapDelta) {
        match postcard::to_allocvec(delta) {
            Ok(bytes) => {
                self.history_bytes += bytes.len();
                self.history.push_back(bytes.into());
            }
            // A hole in the history would be a gap for a watcher; without it they get a whole map.
            Err(_) => self.forget(),
        }
        while self.history.len() > HISTORY_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            match self.history.pop_front() {
                Some(oldest) => self.history_bytes -= oldest.len(),
                None => break,
            }
        }
    }

    fn forget(&mut self) {
        self.history.clear();
        self.history_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::ClusterId;
    use lunette_proto::map::ClusterMap;

    use super::*;
    use crate::state::Command;

    fn step(published: &Published, name: &str) {
        let portals = vec!["127.0.0.1:3260".parse().expect("an address")];
        let mut state = (*published.state()).clone();
        let applied = state.apply(&Command::RegisterGateway { name: name.into(), portals }).expect("right");
        published.advance(&applied.delta.expect("new"), state.next_ids());
    }

    /// Guards against gaps: from every epoch a watcher gets on to the newest map, step by step where the
    /// history reaches, else by a whole map, and never backwards.
    #[test]
    fn every_watcher_arrives() {
        let mut state = State::default();
        state.apply(&Command::Found { cluster: ClusterId(1) }).expect("right");
        let published = Published::new(state);
        for index in 0..5 {
            step(&published, &format!("gw{index}"));
        }
        // Epoch 1 was loaded, 2 to 6 are in the history.
        for start in 0..=6 {
            let mut map = ClusterMap::default();
            let mut wholes = 0;
            let mut have = Epoch(start);
            while let Some(update) = published.next_update(have).expect("encodes") {
                match update {
                    Update::Whole(epoch, bytes) => {
                        map = postcard::from_bytes(&bytes).expect("decodes");
                        assert_eq!(map.epoch, epoch);
                        have = epoch;
                        wholes += 1;
                    }
                    Update::Delta(epoch, bytes) => {
                        let delta: MapDelta = postcard::from_bytes(&bytes).expect("decodes");
                        assert_eq!((delta.epoch, epoch), (epoch, Epoch(have.0 + 1)));
                        have = epoch;
                    }
                }
            }
            assert_eq!(have, Epoch(6));
            assert_eq!(wholes, usize::from(start == 0));
            if start == 0 {
                assert_eq!(&map, published.state().map());
            }
        }
        assert_eq!(published.next_update(Epoch(7)).expect("encodes"), None, "newer than all");
    }

    /// Guards memory: the history is bounded, and whoever it does not reach gets a whole map.
    #[test]
    fn history_is_bounded() {
        let published = Published::new(State::default());
        for index in 0..HISTORY_MAX + 10 {
            // Two names in turn would change nothing; a portal that differs does.
            let portal = format!("127.0.0.1:{}", 1 + index % 60_000).parse().expect("an address");
            let mut state = (*published.state()).clone();
            let command = Command::RegisterGateway { name: "gw".into(), portals: vec![portal] };
            let applied = state.apply(&command).expect("right");
            published.advance(&applied.delta.expect("different"), state.next_ids());
        }
        assert_eq!(published.inner.lock().history.len(), HISTORY_MAX);
        let update = |have| published.next_update(Epoch(have)).expect("encodes").expect("newer");
        assert!(matches!(update(1), Update::Whole(..)));
        assert!(matches!(update(9), Update::Whole(..)));
        assert!(matches!(update(10), Update::Delta(Epoch(11), _)));
    }
}
