//! DATA/run: what each process is to be, and which process it is.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::args::LogFormat;
use crate::up::data::{DataDir, write_private};
use crate::up::ports::Ports;

/// How often a process that is not our child is looked after while it stops.
const POLL: Duration = Duration::from_millis(10);

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Node(u8),
    Gateway(u8),
}

impl Role {
    pub(super) fn of(name: &str) -> Option<Self> {
        let (role, number): (fn(u8) -> Self, _) = match name.strip_prefix("node") {
            Some(number) => (Self::Node, number),
            None => (Self::Gateway, name.strip_prefix("gateway")?),
        };
        let index: u8 = number.parse().ok()?;
        (index > 0 && index.to_string() == number).then(|| role(index))
    }

    /// The command line that runs it.
    pub(super) fn arguments(self, config: &Path, log_format: LogFormat) -> Vec<OsString> {
        let what = match self {
            Self::Node(_) => "node",
            Self::Gateway(_) => "gateway",
        };
        let log_format = match log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        vec![
            what.into(),
            "run".into(),
            "--config".into(),
            config.into(),
            "--log-format".into(),
            log_format.into(),
        ]
    }
}

/// DATA/run.
#[derive(Clone, Debug)]
pub(super) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    pub(super) fn of(data: &Path) -> Self {
        Self { path: data.join("run") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn config(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.toml"))
    }

    fn pid(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.pid"))
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    pub(super) fn log(&self, name: &str) -> Result<File> {
        let path = self.log_path(name);
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        opened.with_context(|| format!("{} cannot be written", path.display()))
    }

    pub(super) fn write_config(
        &self,
        name: &str,
        data: &DataDir,
        ports: &Ports,
        rebuild_after_s: Option<u64>,
    ) -> Result<()> {
        let role = Role::of(name).with_context(|| format!("'{name}' is no process"))?;
        write_private(&self.path, &format!("{name}.toml"), &config(role, name, data, ports, rebuild_after_s))
    }

    pub(super) fn write_pid(&self, name: &str, pid: u32) -> Result<()> {
        write_private(&self.path, &format!("{name}.pid"), &format!("{pid}\n"))
    }

    pub(super) fn remove_pid(&self, name: &str) {
        // Stale pid files do no harm: they are never believed without a look at the process.
        let _ = fs::remove_file(self.pid(name));
    }

    /// Those of `names` that run, with their process ids.
    pub(super) fn running(&self, names: &[String]) -> Vec<(String, u32)> {
        let pid = |name: &String| {
            let pid: u32 = fs::read_to_string(self.pid(name)).ok()?.trim().parse().ok()?;
            self.is_running(name, pid).then(|| (name.clone(), pid))
        };
        names.iter().filter_map(pid).collect()
    }

    /// Whether `pid` is the process of `name`, and not one that got its number later.
    pub(super) fn is_running(&self, name: &str, pid: u32) -> bool {
        use std::os::unix::ffi::OsStrExt;

        // Empty for a process that has ended and is not collected yet.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let config = self.config(name);
        line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_bytes())
    }
}

/// Tells a process to stop.
pub(super) fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits for a process that is not our child, until it is gone or `timeout` has passed.
pub(super) async fn wait_gone(pid: u32, timeout: Duration, is_there: impl Fn() -> bool) {
    let end = Instant::now() + timeout;
    while is_there() {
        if Instant::now() >= end {
            tracing::warn!(pid, "does not stop");
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn config(role: Role, name: &str, data: &DataDir, ports: &Ports, rebuild_after_s: Option<u64>) -> String {
    let mut text =
        format!("# Written by `lunette up --processes` at every start.\nname = {}\n", quoted(name));
    let key = quoted(&data.key().path.to_string_lossy());
    let admin: Vec<String> = ports.admin.iter().map(|address| quoted(&address.to_string())).collect();
    let common = format!("admin = [{}]\ncluster_key_file = {key}\n", admin.join(", "));
    match role {
        Role::Node(node) => {
            // The control plane tells everybody which port it became.
            text.push_str("listen = \"127.0.0.1:0\"\n");
            text.push_str(&common);
            let path = quoted(&data.disk(node).to_string_lossy());
            let capacity = data.capacity_bytes();
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[[disks]]\npath = {path}\ncapacity = {capacity}\n");
            if let Some(listen) = ports.admin.get(usize::from(node) - 1) {
                let dir = quoted(&data.control(node).to_string_lossy());
                let listen = quoted(&listen.to_string());
                let _ = write!(text, "\n[control]\ndir = {dir}\nlisten = {listen}\n");
                if let Some(seconds) = rebuild_after_s {
                    let _ = writeln!(text, "rebuild_after_s = {seconds}");
                }
            }
        }
        Role::Gateway(gateway) => {
            let portals = ports.gateways.get(usize::from(gateway) - 1).into_iter().flatten();
            let portals: Vec<String> = portals.map(|portal| quoted(&portal.to_string())).collect();
            let _ = writeln!(text, "portals = [{}]", portals.join(", "));
            text.push_str(&common);
        }
    }
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::config::{GatewayConfig, NodeConfig};
    use crate::up::data::Wanted;

    #[test]
    fn names_are_exact() {
        // Guards against `node01`, whose disk would be another process's.
        assert_eq!(Role::of("node1"), Some(Role::Node(1)));
        assert_eq!(Role::of("gateway1"), Some(Role::Gateway(1)));
        assert_eq!(Role::of("gateway12"), Some(Role::Gateway(12)));
        for name in [
            "node0",
            "node01",
            "node",
            "node-1",
            "node256",
            "gateway0",
            "gateway02",
            "gateway",
            "../node1",
            "",
        ] {
            assert_eq!(Role::of(name), None, "{name}");
        }
    }

    #[test]
    fn the_configurations_are_what_the_processes_read() {
        // Guards against a generated file that our own parser refuses, and members of the control plane in one folder.
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("with \"quotes\"");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let ports = Ports::take(&[any, any], 2, Some("127.0.0.1:0"), &[], 3).expect("free ports");
        let capacity = Some("1G".parse().expect("a size"));
        let wanted = Wanted { nodes: Some(4), capacity, control: ports.admin.clone() };
        let data = DataDir::open(&path, &wanted).expect("made");
        let run = RunDir::of(data.path());
        crate::up::data::private_dir(run.path()).expect("made");
        for name in ["node1", "node3", "node4", "gateway1", "gateway2"] {
            run.write_config(name, &data, &ports, Some(7)).expect("written");
        }
        let one = NodeConfig::load(&run.config("node1")).expect("valid");
        let control = one.control.as_ref().expect("a control member");
        assert_eq!((control.listen, control.rebuild_after()), (ports.admin[0], Duration::from_secs(7)));
        assert_eq!(one.cluster_key_file, data.key().path);
        let three = NodeConfig::load(&run.config("node3")).expect("valid");
        let control = three.control.as_ref().expect("a control member");
        assert_eq!((control.listen, &control.dir), (ports.admin[2], &data.control(3)));
        assert_eq!(three.admin.len(), 3);
        let four = NodeConfig::load(&run.config("node4")).expect("valid");
        assert!(four.control.is_none());
        assert_eq!(four.disks[0].path, data.disk(4));
        for (name, portals) in ["gateway1", "gateway2"].into_iter().zip(&ports.gateways) {
            let gateway = GatewayConfig::load(&run.config(name)).expect("valid");
            assert_eq!((gateway.name.as_str(), &gateway.portals), (name, portals));
        }
    }

    #[test]
    fn a_pid_file_is_not_believed_blindly() {
        // Guards against a signal to a stranger that got the number of a dead process.
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunDir::of(folder.path());
        fs::create_dir(run.path()).expect("made");
        run.write_pid("node1", std::process::id()).expect("written");
        assert_eq!(run.running(&["node1".to_owned(), "node2".to_owned()]), []);
    }
}
