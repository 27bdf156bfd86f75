//! A storage node elsewhere, over TCP.
//!
//! ```text
//!     call --> table of unanswered requests + encoded frames --> writer: one vectored write for all
//!     reply <-- table <------------------------------------------ reader: all frames of one read
//! ```
//!
//! One connection per node, requests in the order of the calls, answers in any order. A broken
//! connection answers everything on it with [`Failure::Disconnected`] and is tried again, 20 ms to
//! 0.5 s later. Nothing is ever sent twice: whether to repeat is for the caller to decide.
//!
//! A node gives a sign of life four times a second, however busy its disks are; one that says nothing for a second is
//! given up.

mod connection;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use lunette_proto::ids::{ClusterId, NodeId};
use lunette_proto::limits::{EXTENT_BYTES, NODE_INFLIGHT_MAX};
use lunette_proto::node::frame::Outgoing;
use lunette_proto::node::{Change, Failure, Replies, Request, RequestBody, Service};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::fabric::Links;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Requests that may be unanswered. More than the node reads at a time: the rest waits in the
/// sockets and here, so that the node never waits for us.
const UNANSWERED_MAX: usize = 8 * NODE_INFLIGHT_MAX;
/// Data that may be unanswered, either way.
const UNANSWERED_BYTES_MAX: usize = 64 * EXTENT_BYTES as usize;

/// A connection to a node that is made again whenever it breaks. It ends when dropped.
#[derive(Debug)]
pub struct NodeClient {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl NodeClient {
    /// Begins to connect to `node` at `address`, as a member of `cluster` called `name`. `links` hears of
    /// every connection that breaks, before anything else happens on a new one.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(
        cluster: ClusterId,
        name: &str,
        node: NodeId,
        address: SocketAddr,
        links: Arc<ArcSwapOption<Weak<dyn Links>>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            cluster,
            name: name.to_owned(),
            node,
            address,
            links,
            state: Mutex::new(State::default()),
            wake: Notify::new(),
        });
        let task = tokio::spawn(keep_connected(Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }
}

impl Drop for NodeClient {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.disconnected();
    }
}

impl Service for NodeClient {
    fn call(&self, request: Request, tag: u64, to: Arc<dyn Replies>) {
        let failure = {
            let mut state = self.shared.state.lock();
            match state.admit(&request) {
                Ok(bytes) => {
                    let id = state.unanswered.vacant_key() as u64;
                    if state.outgoing.request(id, &request).is_ok() {
                        state.bytes += bytes;
                        state.unanswered.insert(Unanswered { tag, to, bytes });
                        drop(state);
                        self.shared.wake.notify_one();
                        return;
                    }
                    Failure::Invalid
                }
                Err(failure) => failure,
            }
        };
        to.reply(tag, Err(failure));
    }
}

#[derive(Debug)]
struct Shared {
    cluster: ClusterId,
    name: String,
    node: NodeId,
    address: SocketAddr,
    links: Arc<ArcSwapOption<Weak<dyn Links>>>,
    state: Mutex<State>,
    /// There is something to send.
    wake: Notify,
}

#[derive(Default)]
struct State {
    connected: bool,
    outgoing: Outgoing,
    unanswered: Slab<Unanswered>,
    /// Data of the unanswered.
    bytes: usize,
}

struct Unanswered {
    tag: u64,
    to: Arc<dyn Replies>,
    bytes: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("connected", &self.connected)
            .field("unanswered", &self.unanswered.len())
            .field("bytes", &self.bytes)
            .finish()
    }
}

impl State {
    /// Whether a request can be taken now; how much data it moves.
    fn admit(&self, request: &Request) -> Result<usize, Failure> {
        let bytes = data_bytes(&request.body);
        if !self.connected {
            Err(Failure::Disconnected)
        } else if self.unanswered.len() >= UNANSWERED_MAX || self.bytes + bytes > UNANSWERED_BYTES_MAX {
            Err(Failure::Busy)
        } else {
            Ok(bytes)
        }
    }
}

fn data_bytes(body: &RequestBody) -> usize {
    match body {
        RequestBody::Change { change: Change::Data(data), .. }
        | RequestBody::Put { change: Change::Data(data), .. } => data.len(),
        RequestBody::Read { len, .. } => *len as usize,
        _ => 0,
    }
}

impl Shared {
    /// Answers everything, since nothing more will come.
    fn disconnected(&self) {
        let (was_connected, unanswered) = {
            let mut state = self.state.lock();
            let old = std::mem::take(&mut *state);
            (old.connected, old.unanswered)
        };
        if was_connected && let Some(links) = self.links.load_full().and_then(|links| links.upgrade()) {
            links.lost(self.node);
        }
        for (_, it) in unanswered {
            it.to.reply(it.tag, Err(Failure::Disconnected));
        }
    }
}

async fn keep_connected(shared: Arc<Shared>) {
    let mut backoff = BACKOFF_MIN;
    let mut complained = false;
    loop {
        match Box::pin(connection::run(&shared)).await {
            // It worked for a while: try again soon.
            (true, error) => {
                tracing::warn!(node = %shared.node, address = %shared.address, %error, "connection lost");
                backoff = BACKOFF_MIN;
                complained = false;
            }
            (false, error) if !complained => {
                tracing::warn!(node = %shared.node, address = %shared.address, %error, "cannot connect");
                complained = true;
            }
            (false, _) => {}
        }
        shared.disconnected();
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
