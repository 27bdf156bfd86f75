//! A cluster of separate machines, as docs/operations.md builds it: founded, joined with tokens, and one machine exchanged.

#![allow(clippy::unwrap_used, reason = "a test fails where it stops")]

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lunette_tests::binary::lunette_bin;
use lunette_tests::command::{self, Outcome};
use lunette_tests::ports;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A machine: a folder, a configuration, and a node that runs or not.
struct Machine {
    folder: PathBuf,
    admin: SocketAddr,
    node: Option<Child>,
}

struct Machines {
    folder: TempDir,
    machines: Vec<Machine>,
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in &mut self.machines {
            if std::thread::panicking() {
                eprintln!("--- {}\n{}", machine.folder.display(), machine.log());
            }
            machine.kill();
        }
    }
}

impl Machine {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(lunette_bin());
        command.current_dir(&self.folder).args(arguments);
        command
    }

    fn start(&mut self, token: Option<&str>) {
        let mut command = self.command(&["node", "run", "--config", "node.toml"]);
        if let Some(token) = token {
            fs::write(self.folder.join("token"), token).unwrap();
            command.args(["--join-token", "token"]);
        }
        let file = |name| File::options().create(true).append(true).open(self.folder.join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        self.node = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("stderr")).unwrap_or_default()
    }

    fn key(&self) -> PathBuf {
        self.folder.join("cluster.key")
    }
}

impl Machines {
    fn new(count: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("lunette-").tempdir().unwrap();
        let admins: Vec<SocketAddr> = (0..count).map(|_| ports::free()).collect();
        let all = admins.iter().take(3).map(|admin| format!("\"{admin}\"")).collect::<Vec<_>>().join(", ");
        let machine = |(index, admin): (usize, &SocketAddr)| {
            let folder = folder.path().join(format!("machine{}", index + 1));
            fs::create_dir(&folder).unwrap();
            let text = format!(
                "name = \"node{}\"\nlisten = \"127.0.0.1:0\"\nadmin = [{all}]\ncluster_key_file = \"cluster.key\"\n\n\
                 [[disks]]\npath = \"disk\"\ncapacity = \"256M\"\n\n[control]\ndir = \"control\"\nlisten = \"{admin}\"\n",
                index + 1
            );
            fs::write(folder.join("node.toml"), text).unwrap();
            Machine { folder, admin: *admin, node: None }
        };
        let machines = admins.iter().enumerate().map(machine).collect();
        Self { folder, machines }
    }

    /// A command from elsewhere, which knows of some machines.
    fn cli(&self, known: &[usize], arguments: &[&str]) -> Outcome {
        let admin: Vec<String> = known.iter().map(|index| self.machines[*index].admin.to_string()).collect();
        let mut command = Command::new(lunette_bin());
        command.current_dir(self.folder.path()).args(["--admin", &admin.join(",")]).args(arguments);
        command::run(&mut command, PATIENCE)
    }

    fn token(&self, arguments: &[&str]) -> String {
        let made = self.cli(&[0], &[&["cluster", "join-token"], arguments].concat());
        assert!(made.ok(), "{made}");
        made.stdout
    }

    fn control(&self, known: &[usize]) -> Value {
        let outcome = self.cli(known, &["cluster", "status", "--json"]);
        let status: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
        status["control"].clone()
    }

    /// The id of a machine's member, once it is there and has caught up.
    fn member(&self, known: &[usize], machine: usize) -> String {
        let address = self.machines[machine].admin.to_string();
        let end = Instant::now() + PATIENCE;
        loop {
            let control = self.control(known);
            let members = control["members"].as_array().cloned().unwrap_or_default();
            let found = members.iter().find(|member| member["address"] == address.as_str());
            if let Some(member) = found.filter(|member| member["up"] == true && member["behind"] == 0) {
                return member["id"].to_string();
            }
            assert!(Instant::now() < end, "machine {} does not join: {control}", machine + 1);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn create(&self, known: &[usize], name: &str) {
        let pool = self.cli(known, &["pool", "create", name, "--replicas", "1", "--partitions", "16"]);
        assert!(pool.ok(), "{pool}");
    }
}

#[test]
fn three_machines_join_and_one_is_exchanged() {
    // Guards the way that the manual shows, and its doors: a token that was used, has expired or is another cluster's
    // admits nobody and leaves nothing behind.
    let mut all = Machines::new(4);
    let lost =
        command::run(&mut all.machines[1].command(&["node", "run", "--config", "node.toml"]), PATIENCE);
    assert!(!lost.ok() && lost.stderr.contains("cluster.key"), "{lost}");

    let init = |all: &Machines, machine: usize| {
        command::run(
            &mut all.machines[machine].command(&["cluster", "init", "--config", "node.toml"]),
            PATIENCE,
        )
    };
    let founded = init(&all, 0);
    assert!(founded.ok(), "{founded}");
    all.machines[0].start(None);
    let first = all.member(&[0], 0);
    let second = init(&all, 1);
    assert!(!second.ok() && second.stderr.contains("there is a member of cluster"), "{second}");
    assert!(!all.machines[1].key().exists());

    let refused = |all: &Machines, token: &str, want: &str| {
        fs::write(all.machines[2].folder.join("token"), token).unwrap();
        let mut command =
            all.machines[2].command(&["node", "run", "--config", "node.toml", "--join-token", "token"]);
        let refused = command::run(&mut command, PATIENCE);
        assert!(!refused.ok() && refused.stderr.contains(want), "{want}: {refused}");
        let left: Vec<_> =
            fs::read_dir(&all.machines[2].folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the configuration and the token: {left:?}");
    };
    let token = all.token(&[]);
    all.machines[1].start(Some(&token));
    let two = all.member(&[0], 1);
    assert_eq!(fs::read(all.machines[1].key()).unwrap(), fs::read(all.machines[0].key()).unwrap());
    assert_eq!(fs::metadata(all.machines[1].key()).unwrap().permissions().mode() & 0o777, 0o600);
    refused(&all, &token, "used already");
    refused(&all, "nonsense", "no join token");
    let expiring = all.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    refused(&all, &expiring, "expired");
    let token = all.token(&[]);
    let other = token.replacen(&token["lunette-join-".len()..][..8], "00000000", 1);
    refused(&all, &other, "this is cluster");
    all.machines[2].start(Some(&token));
    let three = all.member(&[0], 2);

    let even = all.cli(&[0], &["cluster", "member", "add", &two]);
    assert!(!even.ok() && even.stderr.contains("2 voting members instead of 1"), "{even}");
    let added = all.cli(&[2], &["cluster", "member", "add", &two, &three]);
    assert!(added.ok(), "{added}");
    all.create(&[1], "before");

    // The first machine burns down, a fourth takes its place.
    all.machines[0].kill();
    all.create(&[1, 2], "meanwhile");
    fs::copy(all.machines[1].key(), all.machines[3].key()).unwrap();
    all.machines[3].start(None);
    let four = all.member(&[1], 3);
    let replaced = all.cli(&[1], &["cluster", "member", "replace", &first, "--with", &four]);
    assert!(replaced.ok(), "{replaced}");
    all.machines[1].kill();
    all.create(&[2], "after");
    let pools = all.cli(&[3], &["pool", "list", "--json"]);
    let pools: Value = serde_json::from_str(&pools.stdout).unwrap();
    let names: Vec<_> = pools.as_array().unwrap().iter().map(|pool| pool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["before", "meanwhile", "after"]);
}
