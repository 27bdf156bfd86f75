//! The load of `lunette bench`.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use lunette_proto::limits::{LOAD_DEPTH_MAX, LOAD_MS_MAX, SCSI_TRANSFER_BYTES_MAX};

use super::cluster::time;
use crate::size::{Size, SizeError};

const SECTOR_BYTES: u64 = 512;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    pub(crate) volume: String,
    /// What to do
    #[arg(long, value_name = "PATTERN", default_value = "randread")]
    pub(crate) pattern: Pattern,
    /// Of a hundred commands of `mixed`, so many read [default: 70]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: Option<u8>,
    /// Bytes of each command, 512 to 8M, whole logical blocks of the volume
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = block_bytes)]
    pub(crate) block_size: u32,
    /// Commands at a time, 1 to 1024
    #[arg(long, value_name = "N", default_value = "32",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(LOAD_DEPTH_MAX)))]
    pub(crate) depth: u32,
    /// For how long: 10s, 5m; at most 1h
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// Where: from a first byte to the one after the last, 1G..2G or 1G.. [default: the whole volume]
    #[arg(long, value_name = "FROM..TO")]
    pub(crate) range: Option<Range>,
    /// The same seed gives the same places in the same order
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
    /// Have each write be durable when it is acknowledged, also if the volume's write cache is on
    #[arg(long)]
    pub(crate) durable: bool,
    /// What the volume holds may be overwritten; without it nothing is written
    #[arg(long)]
    pub(crate) destroy_data: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    /// Reads in random places.
    #[value(name = "randread")]
    RandRead,
    /// Writes in random places.
    #[value(name = "randwrite")]
    RandWrite,
    /// Reads, one after the other.
    Read,
    /// Writes, one after the other.
    Write,
    /// Reads and writes in random places.
    Mixed,
}

impl Pattern {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

/// A part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    /// `None`: to its end.
    pub(crate) end: Option<u64>,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (start, end) = text.split_once("..").ok_or("write FROM..TO, such as 0..1G or 1G..")?;
        // 0 is no size, but a place.
        let place = |text: &str| match text.parse::<Size>() {
            Ok(size) => Ok(size.bytes()),
            Err(SizeError::Zero) => Ok(0),
            Err(error) => Err(format!("'{text}': {error}")),
        };
        let start = place(start)?;
        let end = if end.is_empty() { None } else { Some(place(end)?) };
        if end.is_some_and(|end| end <= start) {
            return Err("a range ends after it begins".to_owned());
        }
        Ok(Self { start, end })
    }
}

/// A size of sectors, not only of 4 KiB blocks.
fn block_bytes(text: &str) -> Result<u32, String> {
    let bytes = match text.parse::<Size>() {
        Ok(size) => size.bytes(),
        Err(SizeError::NotBlocks) => text.parse().map_err(|_| SizeError::NotBlocks.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    let fits = bytes.is_multiple_of(SECTOR_BYTES) && bytes <= u64::from(SCSI_TRANSFER_BYTES_MAX);
    u32::try_from(bytes)
        .ok()
        .filter(|_| fits)
        .ok_or_else(|| "a command moves 512 bytes to 8M, in whole blocks of 512".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("no time measures nothing: give at least 1s".to_owned()),
        time if time <= Duration::from_millis(LOAD_MS_MAX) => Ok(time),
        _ => Err("1h is the most".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_blocks() {
        // Guards against writes in another place than was named.
        assert_eq!("0..1M".parse(), Ok(Range { start: 0, end: Some(1 << 20) }));
        assert_eq!("1G..".parse(), Ok(Range { start: 1 << 30, end: None }));
        for text in ["", "..", "1G", "..1G", "1M..1M", "2M..1M", "1X..2M", "100..1M"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
        for (text, bytes) in [("512", 512), ("4K", 4096), ("1536", 1536), ("8M", 8 << 20)] {
            assert_eq!(block_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["0", "100", "4097", "9M", "K", "-512", "1.5K", "99999999999999999999"] {
            assert!(block_bytes(text).is_err(), "{text}");
        }
    }
}
