//! The commands of the control plane.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Found a cluster: its key, and the first member of its control plane, as the configuration of a node says
    Init(ClusterInit),
    /// The cluster's identity, and the members of its control plane
    Status,
    /// Make a token that admits one machine to the cluster, once; it is as good as the cluster's key
    JoinToken(JoinTokenMake),
    /// Have members of the control plane vote, or leave; nodes whose file has a control section join by themselves
    #[command(subcommand)]
    Member(Member),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterInit {
    /// TOML file of the node that is to carry the first member
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct JoinTokenMake {
    /// How long it admits: 90s, 10m, 1h, 7d; at most 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ttl)]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Member {
    /// Have members vote that have joined: two more, so that there are 3 or 5
    Add(Members),
    /// Have members leave for good: two of them, so that 1 or 3 are left, or those that do not vote
    Remove(Members),
    /// Have a member vote in the place of another, which leaves for good
    Replace(MemberReplace),
}

#[derive(Debug, Args)]
pub(crate) struct Members {
    /// As `cluster status` shows them
    #[arg(required = true, value_name = "MEMBER")]
    pub(crate) ids: Vec<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct MemberReplace {
    /// The one that leaves
    #[arg(value_name = "MEMBER")]
    pub(crate) id: u64,
    /// The one that has joined and is to vote
    #[arg(long, value_name = "MEMBER")]
    pub(crate) with: u64,
}

fn ttl(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("a token that admits for no time admits nobody".to_owned()),
        time if time <= Duration::from_secs(30 * 86_400) => Ok(time),
        _ => Err("30d is the most".to_owned()),
    }
}

/// A whole number and its unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number and s, m, h or d, such as 10m".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "write a number and s, m, h or d, such as 10m".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        // Guards against a token that admits for 10 hours where 10 minutes were meant.
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h", 3600), ("30d", 2_592_000)] {
            assert_eq!(ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "h", "1w", "-1h", "1.5h", "0s", "31d", "99999999999999999999d", "1 h"] {
            assert!(ttl(text).is_err(), "{text}");
        }
    }
}
