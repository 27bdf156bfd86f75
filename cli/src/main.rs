//! `lunette`, the one binary: the whole system on one machine, its parts as processes, and the
//! commands of an administrator.
//!
//! ```text
//! args ---> admin/   commands to a running cluster, over gRPC
//!     |\--> run/     one storage node, or one gateway, from a configuration file
//!     | \-> offline/ a look at a disk that nobody uses
//!       \-> up/      all of it on this machine
//! ```

mod admin;
mod args;
mod config;
mod failure;
mod logging;
mod offline;
mod output;
mod run;
mod size;
mod up;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use args::{Cli, Cluster, Command, Disk, Gateway, Global, Node};
use output::Format;

fn main() -> ExitCode {
    // Only for what a wrong one is told: clap reads the arguments itself.
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    match Cli::try_parse() {
        Ok(cli) => match dispatch(cli.command, &cli.global) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failure::report(&error),
        },
        Err(error) => match failure::usage(&error, &words) {
            Ok(help) => {
                output::print(&help);
                ExitCode::SUCCESS
            }
            Err(line) => {
                failure::complain(&line);
                ExitCode::FAILURE
            }
        },
    }
}

fn dispatch(command: Command, global: &Global) -> Result<()> {
    match command {
        Command::Up(up) => {
            logging::start(global.log_format, logging::UP)?;
            server()?.block_on(Box::pin(up::run(up, global)))
        }
        Command::Node(Node::Run(run)) => {
            logging::start(global.log_format, logging::SERVER)?;
            server()?.block_on(Box::pin(run::node::run(
                &run.config,
                run.join_token.as_deref(),
                Format::new(global.json),
            )))
        }
        Command::Gateway(Gateway::Run(run)) => {
            logging::start(global.log_format, logging::SERVER)?;
            server()?.block_on(Box::pin(run::gateway::run(
                &run.config,
                run.join_token.as_deref(),
                Format::new(global.json),
            )))
        }
        Command::Cluster(Cluster::Init(init)) => {
            logging::start(global.log_format, logging::COMMAND)?;
            client()?.block_on(Box::pin(admin::init(&init.config, Format::new(global.json))))
        }
        Command::Disk(Disk::Inspect(inspect)) => offline::inspect(&inspect, Format::new(global.json)),
        Command::Disk(Disk::Check(check)) => offline::check(&check, Format::new(global.json)),
        command => {
            logging::start(global.log_format, logging::COMMAND)?;
            client()?.block_on(Box::pin(admin::run(command, global)))
        }
    }
}

fn server() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().context("the runtime cannot start")
}

fn client() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("the runtime cannot start")
}
