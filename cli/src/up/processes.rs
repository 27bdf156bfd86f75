//! `lunette up --processes`: each node and each gateway as a process of its own, as in a real
//! cluster, on this machine.
//!
//! ```text
//! DATA/run/NAME.toml   its configuration, written at every start
//! DATA/run/NAME.pid    its process id
//! DATA/run/NAME.log    its standard error, appended to
//! ```
//!
//! A process that dies is reported and left dead, so that failures can be tried out; `--only NAME`
//! starts it again. Whoever started a process, the parent stops it in the end: a pid file counts if
//! the process of that number was started from the configuration beside it.

mod child;
mod files;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use super::data::{DataDir, private_dir};
use super::ports::Ports;
use super::setup;
use super::wanted;
use crate::admin::{Address, Connection};
use crate::args::{GATEWAYS_MAX, Global, LogFormat, Up};
use crate::config::NodeConfig;
use crate::failure::complain;
use crate::output::{self, Format};
use crate::run::{control, stop};

use child::{Child, Ended};
use files::{Role, RunDir};

/// A process that has not begun to serve by then will not.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process may take to stop cleanly.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs all of them until told to stop.
pub(crate) async fn run(up: &Up, global: &Global) -> Result<()> {
    let stop = stop::on_signal()?;
    let known = DataDir::members_of(&up.data)?;
    let control = match &up.control {
        Some(text) => text.parse().with_context(|| format!("--control {text}"))?,
        None => known.len().max(1),
    };
    // As many as there are to be: whether there can be is what the directory says.
    let known = if known.len() == control { known.as_slice() } else { &[] };
    let gateways = up.gateways.unwrap_or(1);
    let admin = super::admin(global);
    let mut ports = Ports::take(&up.portals, usize::from(gateways), admin.as_deref(), known, control)?;
    let mut data = DataDir::open(&up.data, &wanted(up, &ports))?;
    let run = RunDir::of(data.path());
    private_dir(run.path())?;
    if let Some((name, pid)) = run.running(&names(data.nodes(), GATEWAYS_MAX)).into_iter().next() {
        bail!("{name} still runs as process {pid}: stop it first with `kill {pid}`");
    }
    let admin = ports.admin.iter().map(|address| Address::parse(&address.to_string()));
    let admin: Vec<Address> = admin.collect::<Result<_>>()?;
    for name in names(data.nodes(), gateways) {
        run.write_config(&name, &data, &ports, up.rebuild_after)?;
    }
    ports.release();

    let mut children = Children { run, gateways, children: Vec::new() };
    let outcome = children.serve(up, global, &mut data, &ports, &admin, &stop).await;
    children.stop(data.nodes()).await;
    outcome
}

/// Becomes the process `name`: its configuration and its log are those of the last `up`.
pub(crate) fn only(name: &str, up: &Up, log_format: LogFormat) -> Result<()> {
    let data = std::fs::canonicalize(&up.data).with_context(|| {
        format!("{} is no data directory: start `lunette up --processes` first", up.data.display())
    })?;
    let run = RunDir::of(&data);
    let Some(role) = Role::of(name) else {
        bail!("'{name}' is no process: name node1, node2, ... or gateway1, ...");
    };
    if !run.config(name).exists() {
        bail!(
            "{} does not exist: start all with `lunette up --processes --data {}` first",
            run.config(name).display(),
            data.display()
        );
    }
    if let Some((_, pid)) = run.running(&[name.to_owned()]).into_iter().next() {
        bail!("{name} runs already, as process {pid}");
    }
    let log = run.log(name)?;
    run.write_pid(name, std::process::id())?;
    let mut command = Command::new(executable()?);
    command.args(role.arguments(&run.config(name), log_format)).stderr(log);
    let error = command.exec();
    bail!("{name} cannot be started: {error}")
}

fn executable() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("the path of this program is unknown")
}

/// All names, in the order in which they start: the one with the control member first.
fn names(nodes: u8, gateways: u8) -> Vec<String> {
    let gateways = (1..=gateways).map(|gateway| format!("gateway{gateway}"));
    (1..=nodes).map(name_of).chain(gateways).collect()
}

fn name_of(node: u8) -> String {
    format!("node{node}")
}

struct Children {
    run: RunDir,
    gateways: u8,
    children: Vec<Child>,
}

impl Children {
    async fn serve(
        &mut self,
        up: &Up,
        global: &Global,
        data: &mut DataDir,
        ports: &Ports,
        admin: &[Address],
        stop: &CancellationToken,
    ) -> Result<()> {
        let names = names(data.nodes(), self.gateways);
        let (nodes, gateways) = names.split_at(data.nodes().into());
        let start = async {
            if !data.is_complete() {
                let first = NodeConfig::load(&self.run.config(&name_of(1)))?;
                control::found(data.key(), first.control.as_ref().context("node1 carries a member")?).await?;
            }
            // Nodes wait for the one that carries the control plane: all start at once.
            self.start(nodes, global.log_format).await?;
            let connection = Connection::open(admin).await?;
            setup::voters(&connection, data.members(), &data.lost_members()).await?;
            setup::complete(&connection, data.nodes(), &up.volumes).await?;
            // Before anybody can write: what is complete is never founded again.
            data.complete()?;
            // The portals open last: whoever finds them open finds all of it ready.
            self.start(gateways, global.log_format).await?;
            setup::announcement(&connection, admin, &ports.portals(), Format::new(global.json)).await
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            announced = tokio::time::timeout(READY_TIMEOUT, start) => {
                let text = announced.context("the processes do not begin to serve; see their logs in DATA/run")??;
                // Nobody has to listen: the servers go on.
                let _ = output::try_print(&text);
            }
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                ended = self.next_end() => {
                    let Ended { name, how } = ended;
                    complain(&format!(
                        "{name} has ended ({how}); start it again with `lunette up --processes --only {name} --data {}`",
                        data.path().display()
                    ));
                }
            }
        }
    }

    /// Starts processes side by side, and waits until all serve.
    async fn start(&mut self, names: &[String], log_format: LogFormat) -> Result<()> {
        let first = self.children.len();
        for name in names {
            self.children.push(Child::start(name, &self.run, log_format)?);
        }
        for child in self.children.iter_mut().skip(first) {
            child.ready(&self.run).await?;
        }
        Ok(())
    }

    /// The next process that ends; never, if none is left.
    async fn next_end(&mut self) -> Ended {
        use futures_util::stream::{FuturesUnordered, StreamExt};

        let ended = {
            let mut all: FuturesUnordered<_> = self.children.iter_mut().map(Child::ended).collect();
            match all.next().await {
                Some(ended) => ended,
                None => std::future::pending().await,
            }
        };
        self.children.retain(|child| child.name() != ended.name);
        ended
    }

    /// First the gateways, which have writes in flight to the nodes; then the nodes; last node1,
    /// which carries the control plane that the others say goodbye to.
    async fn stop(&mut self, nodes: u8) {
        let names = names(nodes, self.gateways);
        let (nodes, gateways) = names.split_at(nodes.into());
        let (first, others) = nodes.split_at(nodes.len().min(1));
        for group in [gateways, others, first] {
            let mut waits = Vec::new();
            for child in
                self.children.iter_mut().filter(|child| group.iter().any(|name| name == child.name()))
            {
                child.terminate();
                waits.push(child.wait(STOP_TIMEOUT));
            }
            futures_util::future::join_all(waits).await;
            for (name, pid) in self.run.running(group) {
                files::terminate(pid);
                files::wait_gone(pid, STOP_TIMEOUT, || self.run.is_running(&name, pid)).await;
            }
            for name in group {
                self.run.remove_pid(name);
            }
        }
    }
}
