//! Log lines: structured, on standard error only, so that standard output stays what a script reads.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// What to log: `info`, or `debug,lunette_volume=trace`.
const VARIABLE: &str = "LUNETTE_LOG";

/// What a server says of itself: what an operator wants to know, not what Raft does.
pub(crate) const SERVER: &str = "info,openraft=warn";
/// On a terminal, beside what `lunette up` prints, and before the one line of a refusal.
pub(crate) const UP: &str = "warn,openraft=error";
/// A command speaks by its result.
pub(crate) const COMMAND: &str = "error";

/// Starts logging; `default` holds unless `LUNETTE_LOG` says otherwise.
pub(crate) fn start(format: LogFormat, default: &str) -> Result<()> {
    let directives = match std::env::var(VARIABLE) {
        Ok(value) if !value.trim().is_empty() => value,
        _ => default.to_owned(),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .with_context(|| format!("{VARIABLE} is '{directives}', which is no filter: write info or debug"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A closed standard error must not end a server.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(false).compact().init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
