//! The node protocol over a real socket.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use lunette_proto::ids::*;
use lunette_proto::node::frame::{Decoder, Frame, Hello, HelloAck, Outgoing, ProtocolVersions};
use lunette_proto::node::*;
use lunette_storage_node::{DiskConfig, Node, serve};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Served {
    _directory: tempfile::TempDir,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

async fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    format(directory.path());
    let node: Arc<Node> = Node::open(CLUSTER, [DiskConfig::new(directory.path(), None)]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, node, "node-1".into(), stop.clone()));
    Served { _directory: directory, address, stop, server }
}

struct Peer {
    stream: TcpStream,
    decoder: Decoder,
}

impl Peer {
    async fn connect(served: &Served) -> Self {
        Self { stream: TcpStream::connect(served.address).await.unwrap(), decoder: Decoder::new() }
    }

    async fn greeted(served: &Served) -> Self {
        let mut peer = Self::connect(served).await;
        let ack = peer.greet(&Hello::new(CLUSTER, "test")).await;
        assert_eq!(ack, HelloAck::Accepted { cluster: CLUSTER, version: 6, name: "node-1".into() });
        peer
    }

    async fn greet(&mut self, hello: &Hello) -> HelloAck {
        let mut out = Outgoing::new();
        out.hello(hello).unwrap();
        self.stream.write_all_buf(&mut out).await.unwrap();
        match self.receive().await {
            Some(Frame::HelloAck(ack)) => ack,
            other => panic!("{other:?}"),
        }
    }

    async fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next_frame().unwrap() {
                // A sign of life may come at any moment.
                Some(Frame::Alive) => continue,
                Some(frame) => return Some(frame),
                None => {}
            }
            if self.stream.read_buf(self.decoder.buffer()).await.ok()? == 0 {
                return None;
            }
        }
    }

    async fn send(&mut self, requests: &[(u64, RequestBody)]) {
        let mut out = Outgoing::new();
        for (id, body) in requests {
            out.request(*id, &Request { disk: DISK, epoch: Epoch(1), body: body.clone() }).unwrap();
        }
        self.stream.write_all_buf(&mut out).await.unwrap();
    }

    async fn reply(&mut self) -> (u64, Reply) {
        match self.receive().await {
            Some(Frame::Reply { id, reply }) => (id, reply),
            other => panic!("{other:?}"),
        }
    }
}

fn seal() -> RequestBody {
    RequestBody::Seal { namespace: NS, generation: Generation(1) }
}

fn change(seq: u64, extent: u64, count: usize) -> RequestBody {
    RequestBody::Change {
        extent: at(extent),
        version: version(1, seq),
        offset: 0,
        change: Change::Data(blocks(seq, count)),
        durability: Durability::Stable,
    }
}

fn read(extent: u64, count: u32) -> RequestBody {
    RequestBody::Read { extent: at(extent), generation: Generation(1), offset: 0, len: count * 4096 }
}

/// Guards the whole path: many requests in flight, every one answered once, data as written.
#[tokio::test]
async fn many_in_flight() {
    let served = served().await;
    let mut peer = Peer::greeted(&served).await;
    peer.send(&[(1, seal())]).await;
    assert_eq!(peer.reply().await, (1, Ok(ReplyBody::Sealed(Sealed::default()))));
    let writes = (0..500).map(|n| (1000 + n, change(n + 1, n, 1))).collect::<Vec<_>>();
    peer.send(&writes).await;
    let mut answered = BTreeSet::new();
    for _ in 0..500 {
        let (id, reply) = peer.reply().await;
        assert_eq!(reply, Ok(ReplyBody::Done));
        assert!(answered.insert(id));
    }
    assert_eq!(answered, (1000..1500).collect());
    let reads = (0..500).map(|n| (n, read(n, 1))).collect::<Vec<_>>();
    peer.send(&reads).await;
    for _ in 0..500 {
        let (id, reply) = peer.reply().await;
        assert_eq!(reply, Ok(ReplyBody::Data(blocks(id + 1, 1))));
    }
}

/// Guards the limit on data in flight: more than the node holds at a time is served all the same,
/// to a peer that reads its answers late.
#[tokio::test]
async fn more_than_fits() {
    let served = served().await;
    let mut peer = Peer::greeted(&served).await;
    peer.send(&[(1, seal()), (2, change(1, 0, 1024))]).await;
    for _ in 0..2 {
        assert!(peer.reply().await.1.is_ok());
    }
    let reads = (0..40).map(|n| (n, read(0, 1024))).collect::<Vec<_>>();
    peer.send(&reads).await;
    for _ in 0..40 {
        assert_eq!(peer.reply().await.1, Ok(ReplyBody::Data(blocks(1, 1024))));
    }
}

/// Guards the greeting: another cluster or version is told why and closed.
#[tokio::test]
async fn strangers_are_refused_by_name() {
    let served = served().await;
    let mut peer = Peer::connect(&served).await;
    let ack = peer.greet(&Hello::new(ClusterId(9), "stranger")).await;
    assert_eq!(ack, HelloAck::WrongCluster { cluster: CLUSTER });
    assert_eq!(peer.receive().await, None);
    let mut peer = Peer::connect(&served).await;
    let newer = Hello { versions: ProtocolVersions { min: 7, max: 8 }, ..Hello::new(CLUSTER, "newer") };
    let versions = ProtocolVersions::SUPPORTED;
    assert_eq!(peer.greet(&newer).await, HelloAck::NoCommonVersion { cluster: CLUSTER, versions });
    assert_eq!(peer.receive().await, None);
}

/// Guards against what anybody may send: garbage, requests without a greeting, replies, damaged and half frames
/// end that connection only.
#[tokio::test]
async fn malformed_input_ends_its_connection_only() {
    let served = served().await;
    let mut good = Peer::greeted(&served).await;
    good.send(&[(1, seal())]).await;
    assert!(good.reply().await.1.is_ok());

    let mut garbage = Peer::connect(&served).await;
    garbage.stream.write_all(&[0x55; 4096]).await.unwrap();
    assert_eq!(garbage.receive().await, None);

    let mut rude = Peer::connect(&served).await;
    rude.send(&[(1, read(0, 1))]).await;
    assert_eq!(rude.receive().await, None);

    let mut replying = Peer::greeted(&served).await;
    let mut out = Outgoing::new();
    out.reply(1, &Ok(ReplyBody::Done)).unwrap();
    replying.stream.write_all_buf(&mut out).await.unwrap();
    assert_eq!(replying.receive().await, None);

    let mut bytes = Vec::new();
    let mut out = Outgoing::new();
    out.request(1, &Request { disk: DISK, epoch: Epoch(1), body: change(1, 0, 1) }).unwrap();
    bytes.resize(bytes::Buf::remaining(&out), 0);
    bytes::Buf::copy_to_slice(&mut out, &mut bytes);
    let mut damaged = Peer::greeted(&served).await;
    let mut flipped = bytes.clone();
    flipped[1000] ^= 1;
    damaged.stream.write_all(&flipped).await.unwrap();
    assert_eq!(damaged.receive().await, None);

    let mut half = Peer::greeted(&served).await;
    half.stream.write_all(&bytes[..1000]).await.unwrap();
    half.stream.shutdown().await.unwrap();
    assert_eq!(half.receive().await, None);

    good.send(&[(2, read(0, 1))]).await;
    assert_eq!(good.reply().await, (2, Ok(ReplyBody::Data(zeros(1)))), "none of it had an effect");
}

/// Guards a gateway's patience with slow disks: it must be able to tell them from a node that is gone.
#[tokio::test]
async fn signs_of_life() {
    let served = served().await;
    let mut peer = Peer::greeted(&served).await;
    for _ in 0..2 {
        let sign = loop {
            match peer.decoder.next_frame().unwrap() {
                Some(frame) => break frame,
                None => assert_ne!(peer.stream.read_buf(peer.decoder.buffer()).await.unwrap(), 0),
            }
        };
        assert_eq!(sign, Frame::Alive);
    }
    peer.send(&[(1, seal())]).await;
    assert_eq!(peer.reply().await, (1, Ok(ReplyBody::Sealed(Sealed::default()))));
}

/// Guards against requests that a node that was stopped finds in its sockets when it goes on: who sent them has given
/// them up long ago, and may have acknowledged later ones that the node has not seen.
#[tokio::test]
async fn what_was_given_up_is_not_begun() {
    let served = served().await;
    let mut peer = Peer::greeted(&served).await;
    peer.send(&[(1, seal())]).await;
    assert!(peer.reply().await.1.is_ok());
    for seq in 1..=20 {
        let mut gone = Peer::greeted(&served).await;
        // The server is a task of this thread: it looks at its socket when both have happened.
        gone.send(&[(1, change(seq, 0, 1))]).await;
        drop(gone);
        tokio::task::yield_now().await;
    }
    peer.send(&[(2, RequestBody::Versions { extent: at(0), generation: Generation(1) })]).await;
    assert_eq!(peer.reply().await, (2, Ok(ReplyBody::Versions(vec![]))));
}

/// Guards the clean stop: requests that the node has taken are answered before it closes.
#[tokio::test]
async fn a_stopping_node_answers_what_it_took() {
    let served = served().await;
    let mut peer = Peer::greeted(&served).await;
    peer.send(&[(1, seal())]).await;
    assert!(peer.reply().await.1.is_ok());
    let writes = (0..200).map(|n| (n, change(n + 1, n, 4))).collect::<Vec<_>>();
    peer.send(&writes).await;
    let first = peer.reply().await;
    assert_eq!(first.1, Ok(ReplyBody::Done));
    served.stop.cancel();
    while let Some(frame) = peer.receive().await {
        assert!(matches!(frame, Frame::Reply { reply: Ok(ReplyBody::Done), .. }), "{frame:?}");
    }
    served.server.await.unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}
