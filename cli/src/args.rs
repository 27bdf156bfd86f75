//! The command line: every command and option, and nothing of what they do.

mod bench;
mod cluster;
mod disk;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lunette_proto::limits::{NAME_CHARS_MAX, VOLUME_BYTES_MAX};

use crate::size::{Size, SizeError};

pub(crate) use bench::{Bench, Pattern};
pub(crate) use cluster::{Cluster, JoinTokenMake, Member};
pub(crate) use disk::{Disk, DiskAdd, DiskCheck, DiskDrain, DiskInspect, DiskRemove, DiskReplace, DiskScrub};

/// A distributed block store with an iSCSI target.
#[derive(Debug, Parser)]
#[command(name = "lunette", version, propagate_version = true, disable_help_subcommand = true)]
#[command(
    after_help = "Environment: LUNETTE_ADMIN (where the control plane is), LUNETTE_LOG (what is logged)."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Address of the control plane: where `up` serves it, where all others find it; of several members any, or some
    /// with commas between them [default: LUNETTE_ADMIN, else http://127.0.0.1:7400]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) admin: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How log lines on standard error are written; LUNETTE_LOG says which
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole system on this machine
    Up(Up),
    /// Run and list storage nodes
    #[command(subcommand)]
    Node(Node),
    /// Run a gateway
    #[command(subcommand)]
    Gateway(Gateway),
    /// The control plane
    #[command(subcommand)]
    Cluster(Cluster),
    /// Disks
    #[command(subcommand)]
    Disk(Disk),
    /// Pools: how many copies, and what two copies never share
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes: what a LUN shows
    #[command(subcommand)]
    Volume(Volume),
    /// iSCSI targets: LUNs, who may use them, and how they prove who they are
    #[command(subcommand)]
    Target(Target),
    /// iSCSI sessions
    #[command(subcommand)]
    Session(Session),
    /// Measure a volume, without iSCSI: its owner puts a load on it
    Bench(Bench),
    /// Health, and everything at a glance
    Status(Status),
}

/// Gateways that `up --processes` runs on one machine.
pub(crate) const GATEWAYS_MAX: u8 = 8;

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = "./lunette-data")]
    pub(crate) data: PathBuf,
    /// Storage nodes [default: 3, or as many as DIR has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) nodes: Option<u8>,
    /// Where iSCSI is served [default: 127.0.0.1:3260]
    #[arg(long = "portal", value_name = "ADDR:PORT", value_parser = portal)]
    pub(crate) portals: Vec<SocketAddr>,
    /// Create this volume unless it exists, and export it
    #[arg(long = "volume", value_name = "NAME=SIZE")]
    pub(crate) volumes: Vec<NamedSize>,
    /// Capacity of each node's disk when it is first made [default: a share of the file system]
    #[arg(long, value_name = "SIZE")]
    pub(crate) capacity: Option<Size>,
    /// Seconds for which a disk is out before its copies are made on others [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) rebuild_after: Option<u64>,
    /// Run each node and each gateway as a process of its own
    #[arg(long)]
    pub(crate) processes: bool,
    /// Members of the control plane: 1, 3 or 5, on node1, node2, ... [default: 1, or as many as DIR has]
    #[arg(long, value_name = "N", requires = "processes", value_parser = ["1", "3", "5"])]
    pub(crate) control: Option<String>,
    /// Gateways, each at the ports that follow those of the one before [default: 1]
    #[arg(long, value_name = "N", requires = "processes",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(GATEWAYS_MAX)))]
    pub(crate) gateways: Option<u8>,
    /// Start only this one of the processes again: node1, node2, ..., gateway1, ...
    #[arg(long, value_name = "NAME", requires = "processes")]
    pub(crate) only: Option<String>,
}

fn portal(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write ADDR:PORT, such as 10.0.0.1:3260 or [fd00::1]:3260".to_owned())
}

/// `NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedSize {
    pub(crate) name: String,
    pub(crate) size: Size,
}

impl FromStr for NamedSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text.split_once('=').ok_or("write NAME=SIZE, such as disk1=10G")?;
        // Checked here too, so that a name that is refused has not made a data directory before.
        let fits = (1..=NAME_CHARS_MAX).contains(&name.len());
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let wrong = |c: char| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '.');
        if !fits || !first || name.contains(wrong) {
            return Err(format!(
                "'{name}' is no volume name: use 1 to {NAME_CHARS_MAX} of a-z, 0-9, '-' and '.', a letter or digit first"
            ));
        }
        let size: Size = size.parse().map_err(|error| format!("{error}"))?;
        if size.bytes() > VOLUME_BYTES_MAX {
            return Err(SizeError::TooLarge.to_string());
        }
        Ok(Self { name: name.to_owned(), size })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Run a storage node until it is told to stop
    Run(Run),
    /// List the storage nodes
    List,
    /// Move all copies away from a node's disks and put none there, so that it can be removed
    Drain(NodeDrain),
    /// Give a node up for good, with its disks, which must have no copies any more
    Remove(Name),
}

#[derive(Debug, Args)]
pub(crate) struct NodeDrain {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) how: Drain,
}

/// How something is emptied.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Drain {
    /// Only show what would move
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Let it be: what has moved away is evened out again
    #[arg(long)]
    pub(crate) off: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    /// Run a gateway until it is told to stop
    Run(Run),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// TOML file that says who this is and where the others are
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Fetch the cluster's key with the join token in this file, or on standard input for -, if there is no key yet
    #[arg(long, value_name = "FILE")]
    pub(crate) join_token: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Create a pool over all disks
    Create(PoolCreate),
    /// List the pools
    List,
    /// Show a pool
    Show(Name),
    /// Delete a pool that has no volumes
    Delete(Name),
}

#[derive(Debug, Args)]
pub(crate) struct PoolCreate {
    /// Its name
    pub(crate) name: String,
    /// Copies of everything, 1 to 5
    #[arg(long, value_name = "R")]
    pub(crate) replicas: u32,
    /// What two copies never share
    #[arg(long, value_name = "DOMAIN", default_value = "host")]
    pub(crate) failure_domain: FailureDomain,
    /// Copies that must be in sync for a write to be acknowledged [default: a majority, 1 of 2]
    #[arg(long, value_name = "M")]
    pub(crate) min_size: Option<u32>,
    /// Partitions of its ring; fixed for its life [default: 4096]
    #[arg(long, value_name = "P")]
    pub(crate) partitions: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailureDomain {
    Disk,
    Host,
    Rack,
    Zone,
}

impl FailureDomain {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Name {
    /// Its name
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume
    Create(VolumeCreate),
    /// List the volumes
    List,
    /// Show a volume
    Show(Name),
    /// Make a volume larger
    Resize(VolumeResize),
    /// Turn the write cache of a volume on or off
    Set(VolumeSet),
    /// Have another gateway own a volume; what is under way on it is finished first
    Own(VolumeOwn),
    /// Delete a volume and its data
    Delete(VolumeDelete),
}

#[derive(Debug, Args)]
pub(crate) struct VolumeCreate {
    /// Its name
    pub(crate) name: String,
    /// What it shows: 10G, 512MiB, 1TiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: Size,
    /// Where its data lies
    #[arg(long, value_name = "POOL", default_value = "default")]
    pub(crate) pool: String,
    /// Stripe over several extents in pieces of this size, 16K to 1M
    #[arg(long, value_name = "U", requires = "stripe_width")]
    pub(crate) stripe_unit: Option<Size>,
    /// Extents side by side, 2 to 64
    #[arg(long, value_name = "W", requires = "stripe_unit")]
    pub(crate) stripe_width: Option<u32>,
    /// Acknowledge writes before they are durable; a flush makes them so
    #[arg(long)]
    pub(crate) write_back: bool,
    /// Logical block size
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    pub(crate) block_size: String,
    /// Also make target iqn.2026-11.io.lunette:NAME with the volume at LUN 0
    #[arg(long)]
    pub(crate) export: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeResize {
    /// Its name
    pub(crate) name: String,
    /// Its new size, not smaller than the old one
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) size: Size,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeSet {
    /// Its name
    pub(crate) name: String,
    /// on: acknowledge writes before they are durable, until a flush; off: only then, and flush what there is
    #[arg(long, value_name = "on|off")]
    pub(crate) write_back: OnOff,
    /// Turn it on also while initiators use the volume, which may not notice that they have to flush from then on
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeOwn {
    /// Its name
    pub(crate) name: String,
    /// The gateway that is to own it
    #[arg(long, value_name = "G")]
    pub(crate) gateway: String,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeDelete {
    /// Its name
    pub(crate) name: String,
    /// Also take it out of every target that shows it; the one that --export made is deleted with its ACL, unless it shows
    /// something else
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Target {
    /// Create a target
    Create(TargetCreate),
    /// List the targets
    List,
    /// Show a target
    Show(TargetName),
    /// Delete a target and end its sessions
    Delete(TargetName),
    /// Show a volume as a LUN
    Map(TargetMap),
    /// Take a volume out of a target
    Unmap(TargetUnmap),
    /// Admit initiators
    Allow(TargetAcl),
    /// Take an entry of `allow` away
    Deny(TargetAcl),
    /// Ask initiators for a user and a secret
    Chap(TargetChap),
    /// Ask initiators to log out, and admit nobody, until it is taken back
    Drain(TargetDrain),
}

#[derive(Debug, Args)]
pub(crate) struct TargetCreate {
    /// Its iSCSI name [default: iqn.2026-11.io.lunette:target-N]
    pub(crate) iqn: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TargetName {
    /// Its iSCSI name
    #[arg(value_name = "TARGET")]
    pub(crate) iqn: String,
}

#[derive(Debug, Args)]
pub(crate) struct TargetMap {
    /// Its iSCSI name
    #[arg(value_name = "TARGET")]
    pub(crate) iqn: String,
    /// What to show
    pub(crate) volume: String,
    /// As which number [default: the lowest that is free]
    #[arg(long, value_name = "N")]
    pub(crate) lun: Option<u32>,
    /// Refuse writes through this LUN
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TargetUnmap {
    /// Its iSCSI name
    #[arg(value_name = "TARGET")]
    pub(crate) iqn: String,
    /// What not to show any more
    pub(crate) volume: String,
}

#[derive(Debug, Args)]
pub(crate) struct TargetAcl {
    /// Its iSCSI name
    #[arg(value_name = "TARGET")]
    pub(crate) iqn: String,
    /// Initiator names: `*` is any run of characters, `?` is one
    #[arg(long, value_name = "GLOB")]
    pub(crate) initiator: String,
    /// Addresses that they come from [default: any]
    #[arg(long, value_name = "CIDR")]
    pub(crate) from: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TargetDrain {
    /// Its iSCSI name
    #[arg(value_name = "TARGET")]
    pub(crate) iqn: String,
    /// Admit initiators again
    #[arg(long)]
    pub(crate) off: bool,
}

/// Secrets are never arguments: every user of the machine can read those.
#[derive(Debug, Args)]
pub(crate) struct TargetChap {
    /// Its iSCSI name
    #[arg(value_name = "TARGET", required_unless_present = "discovery", conflicts_with = "discovery")]
    pub(crate) iqn: Option<String>,
    /// In place of a target: ask whoever only wants to know which targets there are (SendTargets)
    #[arg(long)]
    pub(crate) discovery: bool,
    /// Whom the initiator has to be
    #[arg(long, value_name = "U", required_unless_present = "off")]
    pub(crate) user: Option<String>,
    /// File with the initiator's secret, 12 characters or more [default: standard input]
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// As whom the target answers (mutual CHAP)
    #[arg(long, value_name = "M", requires = "user")]
    pub(crate) mutual_user: Option<String>,
    /// File with the target's secret [default: the second line of standard input]
    #[arg(long, value_name = "FILE", requires = "mutual_user")]
    pub(crate) mutual_secret_file: Option<PathBuf>,
    /// Algorithms to allow, in order of preference: the first of them that the initiator offers is used, and one that
    /// offers none of them is refused. Leave md5 and sha1 out where all initiators can do better; open-iscsi offers
    /// md5 alone unless node.session.auth.chap_algs says more [default: sha3-256, sha256, sha1, md5]
    #[arg(
        long = "algorithm",
        alias = "algorithms",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "user"
    )]
    #[arg(value_parser = ["md5", "sha1", "sha256", "sha3-256"])]
    pub(crate) algorithms: Vec<String>,
    /// Ask for nothing any more
    #[arg(long, conflicts_with_all = ["user", "secret_file", "mutual_user", "mutual_secret_file", "algorithms"])]
    pub(crate) off: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// List the sessions of all gateways
    List,
    /// Close a session's connections; the initiator may log in again
    Kick(SessionKick),
}

#[derive(Debug, Args)]
pub(crate) struct SessionKick {
    /// As `session list` shows it
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Go on, and print it again after each change
    #[arg(long)]
    pub(crate) watch: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_contradict_nothing() {
        // Guards against two options of one name, and defaults that their own parser refuses.
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_there_under_its_fixed_name() {
        // Guards against renaming what scripts depend on.
        let table = [
            "up",
            "up --data d --nodes 5 --portal 127.0.0.1:0 --portal [::1]:3260 --admin 127.0.0.1:0 --volume a=1G --volume b=4K",
            "up --processes --data d",
            "up --processes --only node2 --data d",
            "node run --config node.toml",
            "node list --json",
            "node drain node2",
            "node drain node2 --dry-run --json",
            "node drain node2 --off",
            "node remove node2",
            "disk drain 3 --dry-run",
            "disk drain disk-3 --off",
            "disk remove 3",
            "up --rebuild-after 5",
            "gateway run --config gateway.toml --log-format json",
            "cluster status",
            "cluster init --config node.toml",
            "cluster join-token",
            "cluster join-token --ttl 10m --json",
            "cluster member add 2 3",
            "cluster member remove 2 3",
            "cluster member replace 2 --with 4",
            "node run --config node.toml --join-token -",
            "gateway run --config gateway.toml --join-token token",
            "up --processes --control 3",
            "up --processes --gateways 2",
            "disk list",
            "disk add --node node1 /srv/disk2",
            "disk add /dev/sdb --node node1 --capacity 1TiB --json",
            "disk replace 3 /srv/disk3 --dry-run",
            "disk replace disk-3 /srv/disk3 --node node2 --capacity 1TiB --json",
            "disk inspect /srv/disk2",
            "disk inspect /dev/sdb --unit 7 --wal --extent volume-3:12 --json",
            "disk check /srv/disk2 --json",
            "pool create p --replicas 2 --failure-domain rack --min-size 2 --partitions 64",
            "pool list",
            "pool show p",
            "pool delete p",
            "volume create v --size 10G",
            "volume create v --size 10G --pool p --stripe-unit 64K --stripe-width 4 --write-back --block-size 4096 --export",
            "volume list --json --admin http://10.0.0.1:7400",
            "volume show v",
            "volume resize v --size 20G",
            "volume delete v --force",
            "target create",
            "target create iqn.2026-11.io.lunette:a",
            "target list",
            "target show t",
            "target delete t",
            "target map t v --lun 3 --read-only",
            "target unmap t v",
            "target allow t --initiator iqn.* --from 10.0.0.0/8",
            "target deny t --initiator iqn.*",
            "target chap t --user u --secret-file f --mutual-user m --mutual-secret-file g --algorithm sha256,md5",
            "target chap t --off",
            "target chap --discovery --user u --secret-file f --mutual-user m --algorithms sha256",
            "target chap --discovery --off",
            "target drain t",
            "target drain t --off",
            "volume set v --write-back off",
            "volume set v --write-back on --force --json",
            "session list",
            "session kick gateway1/1",
            "bench v",
            "bench v --pattern mixed --read-percent 70 --block-size 512 --depth 1 --duration 1s --range 1G..2G --seed 7",
            "bench v --pattern randwrite --durable --destroy-data --range 64K.. --json",
            "status",
            "--admin 127.0.0.1:7400 status --watch --json",
        ];
        for line in table {
            let words = std::iter::once("lunette").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn half_of_a_pair_is_refused() {
        // Guards against options that silently do nothing without their partner.
        let table = [
            "up --only node1",
            "up --nodes 0",
            "up --volume a",
            "up --volume a=0",
            "up --volume =1G",
            "up --volume Disk=1G",
            "up --volume a_b=1G",
            "up --volume -a=1G",
            "up --portal localhost",
            "volume create v",
            "volume create v --size 10G --stripe-unit 64K",
            "volume create v --size 10G --stripe-width 4",
            "volume create v --size 10G --block-size 1024",
            "target chap t",
            "target chap t --off --user u",
            "target chap t --discovery --user u",
            "target chap --discovery",
            "target chap --off",
            "target drain",
            "volume set v",
            "volume set v --write-back maybe",
            "target chap t --user u --mutual-secret-file f",
            "target chap t --user u --algorithm crc32",
            "target chap t --user u --secret s3cr3t",
            "disk add /srv/disk2",
            "disk add --node node1",
            "node drain",
            "node remove",
            "disk drain",
            "disk drain x",
            "disk remove",
            "disk replace 3",
            "disk replace /srv/disk2",
            "bench",
            "bench v --pattern random",
            "bench v --block-size 0",
            "bench v --block-size 1000",
            "bench v --block-size 16M",
            "bench v --depth 0",
            "bench v --depth 1025",
            "bench v --duration 0s",
            "bench v --duration 2h",
            "bench v --duration 10",
            "bench v --range 1G",
            "bench v --range 2G..1G",
            "bench v --range 1G..1G",
            "bench v --range x..",
            "bench v --pattern mixed --read-percent 101",
            "bench v --seed -1",
            "cluster init",
            "cluster join-token --ttl 0",
            "cluster join-token --ttl 31d",
            "cluster member add",
            "cluster member add x",
            "cluster member replace 2",
            "up --control 3",
            "up --gateways 2",
            "up --processes --gateways 0",
            "up --processes --control 2",
            "disk inspect",
            "disk inspect /srv/disk2 --extent 3",
            "disk inspect /srv/disk2 --unit -1",
            "disk check",
            "disk add --node node1 /srv/disk2 --capacity 0",
            "pool create p",
            "pool create p --replicas 3 --failure-domain moon",
            "node",
            "",
        ];
        for line in table {
            let words = std::iter::once("lunette").chain(line.split(' ').filter(|word| !word.is_empty()));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
