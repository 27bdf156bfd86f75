//! A gateway without file descriptors, in a process of its own that may have few.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::VOLUME_BYTES;
use crate::device::Model;
use crate::initiator::read10;
use crate::sockets::{Wire, start};

/// Says to the process that it is the gateway.
const ROLE: &str = "LUNETTE_TEST_IS_GATEWAY";
const DESCRIPTORS: usize = 64;

/// Nothing by itself: the process that the test below starts runs here.
#[test]
fn gateway() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let gateway = start(&["127.0.0.1:0"], &Model::new(VOLUME_BYTES)).unwrap();
    println!("\nportal {}", gateway.portals()[0]);
    // Until the other end is closed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Process(Child);

impl Process {
    fn start() -> (Self, SocketAddr) {
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")])
            .arg(this)
            .args(["exhaustion::gateway", "--exact", "--nocapture"])
            .env(ROLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let portal = lines.find_map(|line| line.unwrap().strip_prefix("portal ")?.parse().ok());
        // Whoever reads no more would end the process with its next line.
        std::thread::spawn(move || lines.for_each(drop));
        (Self(child), portal.unwrap())
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(usize) -> bool) {
        let begun = Instant::now();
        while !is_so(self.descriptors()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {}", self.descriptors());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Guards a gateway that has no file descriptors left: the sessions that it has go on, it waits, and takes
/// logins again when there are some.
#[test]
fn out_of_file_descriptors() {
    let (process, portal) = Process::start();
    let mut host = Wire::connect(portal);
    host.login();
    assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    let before = process.descriptors();
    for _ in 0..3 {
        let crowd: Vec<TcpStream> =
            (0..2 * DESCRIPTORS).map(|_| TcpStream::connect(portal).unwrap()).collect();
        process.wait_for("all are taken", |count| count >= DESCRIPTORS);
        assert_eq!(host.command(1, read10(0, 8), true, 4096, &[]).1.len(), 4096);
        drop(crowd);
        process.wait_for("they come back", |count| count <= before);
        let mut other = Wire::connect(portal);
        let tsih = other.login();
        assert_ne!(tsih, 0);
        host = other;
        assert_eq!(host.command(0, [0; 16], false, 0, &[]).0, 2, "POWER ON");
    }
}
