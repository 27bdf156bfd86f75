//! A storage node that is killed: this very program, started again to serve one disk.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lunette_proto::ids::{ClusterId, DiskId, DiskUuid};
use lunette_storage_node::store::layout::WAL_BYTES_MIN;
use lunette_storage_node::{DiskConfig, FormatOptions, Identity, Node, format_disk, serve};
use tokio_util::sync::CancellationToken;

pub(crate) const CLUSTER: ClusterId = ClusterId(0x57a);
pub(crate) const DISK: DiskId = DiskId(1);
const CAPACITY_BYTES: u64 = 256 << 20;
/// Where the disk of the child lies.
const CHILD: &str = "LUNETTE_TEST_POWER_CHILD";

/// Makes a disk in a new folder, durably.
pub(crate) fn format(path: &Path) {
    let identity = Identity { cluster: CLUSTER, disk: DISK, uuid: DiskUuid(9) };
    // The smallest journal, so that it goes round.
    let options = FormatOptions { capacity_bytes: Some(CAPACITY_BYTES), wal_bytes: Some(WAL_BYTES_MIN) };
    format_disk(path, &identity, &options).expect("format a disk");
}

/// Serves for as long as it lives, if this process is such a child.
pub(crate) fn serve_if_child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let config = DiskConfig::new(Path::new(&path), None);
    let node = Node::open(CLUSTER, [config]).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(1)
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        // The test runner has begun a line.
        println!("\nlistening {}", listener.local_addr().expect("its address"));
        serve(listener, node, "node".into(), CancellationToken::new()).await;
    });
}

/// The child.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    child: Child,
}

impl NodeProcess {
    /// Starts it; it begins with opening its disk.
    pub(crate) fn start(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("a running test has a path"))
            .args(["--exact", "child_serves_a_disk", "--nocapture"])
            .env(CHILD, path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a node");
        Self { child }
    }

    /// Where it serves, once its disk is open; `None` if it could not be opened, which its message says.
    pub(crate) fn address(&mut self) -> Option<SocketAddr> {
        let out = self.child.stdout.take().expect("asked once");
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ").map(str::to_owned));
        address.map(|address| address.parse().expect("an address"))
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails only if it is gone already.
        let _ = self.child.kill();
        self.child.wait().expect("wait for a child");
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.end();
    }
}
