//! The commands that talk to a running cluster, through the administration API and nothing else.

mod bench;
mod cluster;
mod connection;
mod disk;
mod drain;
mod json;
mod node;
mod pool;
mod scrub;
mod secret;
mod session;
mod status;
mod target;
mod volume;

use anyhow::Result;

use crate::args::{Command, Global, Name, Node};
use crate::output::Format;

pub(crate) use cluster::init;
pub(crate) use connection::{Address, Connection, DEFAULT_PORT, VARIABLE};
pub(crate) use secret::read_token;

/// Carries out a command; `None` is a command that is none of these.
pub(crate) async fn run(command: Command, global: &Global) -> Result<()> {
    let format = Format::new(global.json);
    let admin = Address::of(global.admin.as_deref())?;
    let connect = || Connection::open(&admin);
    match command {
        Command::Cluster(command) => cluster::run(command, &connect().await?, format).await,
        Command::Status(status) if status.watch => status::watch(&connect().await?, format).await,
        Command::Status(_) => status::once(&connect().await?, format).await,
        Command::Node(Node::List) => node::list(&connect().await?, format).await,
        Command::Node(Node::Drain(drain)) => node::drain(drain, &connect().await?, format).await,
        Command::Node(Node::Remove(Name { name })) => node::remove(name, &connect().await?).await,
        Command::Disk(command) => disk::run(command, &connect().await?, format).await,
        Command::Pool(command) => pool::run(command, &connect().await?, format).await,
        Command::Volume(command) => volume::run(command, &connect().await?, format).await,
        Command::Target(command) => target::run(command, &admin, format).await,
        Command::Session(command) => session::run(command, &connect().await?, format).await,
        Command::Bench(bench) => bench::run(bench, &connect().await?, format).await,
        Command::Up(_) | Command::Node(Node::Run(_)) | Command::Gateway(_) => {
            unreachable!("main runs servers itself")
        }
    }
}
