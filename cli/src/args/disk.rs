//! `lunette disk`: those that ask a cluster, and those that look at a disk that nobody uses.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use lunette_proto::ids::{ExtentId, Namespace, VolumeId};

use super::Drain;
use crate::size::Size;

#[derive(Debug, Subcommand)]
pub(crate) enum Disk {
    /// List the disks of all nodes
    List,
    /// Make a place of a node a disk of the cluster
    Add(DiskAdd),
    /// Put another disk in the place of one, which is given up once its copies have moved
    Replace(DiskReplace),
    /// Look at all data of a disk now, or say how far that is; what is damaged is repaired from other disks
    Scrub(DiskScrub),
    /// Move all copies away from a disk and put none there, so that it can be removed
    Drain(DiskDrain),
    /// Give a disk up for good, which must have no copies any more
    Remove(DiskRemove),
    /// Show what is on a disk of this machine that is not in use
    Inspect(DiskInspect),
    /// Read all of a disk of this machine that is not in use, and say what is damaged
    Check(DiskCheck),
}

#[derive(Debug, Args)]
pub(crate) struct DiskAdd {
    /// The node's name
    #[arg(long, value_name = "NODE")]
    pub(crate) node: String,
    /// A directory, a preallocated file or a block device that holds nothing: an absolute path on the node
    pub(crate) path: String,
    /// What it offers [default: what there is]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) capacity: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct DiskReplace {
    /// The disk that goes, by its number in `disk list`
    #[arg(value_parser = disk_id)]
    pub(crate) disk: u32,
    /// The one that comes, as for `disk add`
    pub(crate) path: String,
    /// The node of the one that comes [default: that of the one that goes]
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
    /// What it offers [default: what there is]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) capacity: Option<Size>,
    /// Only say what would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiskDrain {
    /// The disk, by its number in `disk list`
    #[arg(value_parser = disk_id)]
    pub(crate) disk: u32,
    #[command(flatten)]
    pub(crate) how: Drain,
}

#[derive(Debug, Args)]
pub(crate) struct DiskRemove {
    /// The disk, by its number in `disk list`
    #[arg(value_parser = disk_id)]
    pub(crate) disk: u32,
}

#[derive(Debug, Args)]
pub(crate) struct DiskScrub {
    /// The disk, by its number in `disk list`
    #[arg(value_name = "DISK", required_unless_present = "status", value_parser = disk_id)]
    pub(crate) disk: Option<u32>,
    /// How much it looks at in a second [default: as much as it can]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, conflicts_with = "status")]
    pub(crate) rate: Option<Size>,
    /// Begin nothing; show how far the scrubbers are and what is damaged
    #[arg(long)]
    pub(crate) status: bool,
}

/// `3`, or `disk-3` as messages write it.
fn disk_id(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("disk-").unwrap_or(text);
    number.parse().map_err(|_| "write the number that `disk list` shows, such as 3".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct DiskInspect {
    /// Its directory, file or block device
    pub(crate) path: PathBuf,
    /// Also show an allocation unit
    #[arg(long, value_name = "N")]
    pub(crate) unit: Option<u32>,
    /// Also list the batches of the journal that are to be applied
    #[arg(long)]
    pub(crate) wal: bool,
    /// Also show where an extent lies: volume-ID:INDEX, or the namespace in hexadecimal instead of volume-ID
    #[arg(long, value_name = "NAMESPACE:INDEX")]
    pub(crate) extent: Option<ExtentName>,
}

#[derive(Debug, Args)]
pub(crate) struct DiskCheck {
    /// Its directory, file or block device
    pub(crate) path: PathBuf,
}

/// An extent as people name it, or as the reports do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtentName(pub(crate) ExtentId);

impl FromStr for ExtentName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// Ids of volumes lie below the kinds of namespaces.
        const VOLUMES_END: u64 = 1 << 56;
        const WRONG: &str = "write volume-ID:INDEX, such as volume-3:12, or ns-HEX:INDEX";
        let (namespace, index) = text.split_once([':', '/']).ok_or(WRONG)?;
        let index = index.parse().map_err(|_| WRONG)?;
        let namespace = match namespace.strip_prefix("volume-") {
            Some(id) => match id.parse() {
                Ok(id) if id < VOLUMES_END => Namespace::volume(VolumeId(id)),
                _ => return Err(WRONG),
            },
            None => {
                let hex = namespace.strip_prefix("ns-").unwrap_or(namespace);
                Namespace(u64::from_str_radix(hex, 16).map_err(|_| WRONG)?)
            }
        };
        Ok(Self(ExtentId { namespace, index }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_named_as_they_are_printed() {
        // Guards against a name that is copied from a report or a listing and means another extent.
        let extent = ExtentId { namespace: Namespace::volume(VolumeId(0x2a)), index: 7 };
        for text in ["volume-42:7", "ns-010000000000002a:7", "010000000000002A:7", &extent.to_string()] {
            assert_eq!(text.parse(), Ok(ExtentName(extent)), "{text}");
        }
        for text in [
            "",
            "7",
            ":",
            "volume-42",
            "volume-42:",
            "volume-x:7",
            "volume-72057594037927936:7",
            "zz:7",
            "1:-1",
        ] {
            assert!(text.parse::<ExtentName>().is_err(), "{text}");
        }
    }
}
