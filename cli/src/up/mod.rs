//! `lunette up`: the whole system on this machine, in one process or in several.

pub(crate) mod data;
pub(crate) mod ports;
mod processes;
mod setup;
mod single;

use anyhow::{Result, bail};

use crate::admin::VARIABLE;
use crate::args::{Global, Up};

use data::Wanted;
use ports::Ports;

/// The name of the gateway, where there is one.
const GATEWAY: &str = "gateway1";

/// Runs it until told to stop.
pub(crate) async fn run(up: Up, global: &Global) -> Result<()> {
    if let Some(name) = &up.only {
        if up.nodes.is_some()
            || up.control.is_some()
            || up.gateways.is_some()
            || up.capacity.is_some()
            || !up.portals.is_empty()
            || !up.volumes.is_empty()
        {
            bail!("--only {name} runs as the last `lunette up --processes` did: leave the other options out");
        }
        return processes::only(name, &up, global.log_format);
    }
    setup::distinct(&up.volumes)?;
    if up.processes {
        return processes::run(&up, global).await;
    }
    single::run(&up, global).await
}

/// Where the control plane is to serve: as for all other commands, the option goes before the environment.
fn admin(global: &Global) -> Option<String> {
    let named = || std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    global.admin.clone().or_else(named)
}

/// What the data directory is to be.
fn wanted(up: &Up, ports: &Ports) -> Wanted {
    Wanted { nodes: up.nodes, capacity: up.capacity, control: ports.admin.clone() }
}
