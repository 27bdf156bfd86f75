//! Every maximum in one place, with its unit last in the name.

/// An extent, the unit of placement: 4 MiB.
pub const EXTENT_BYTES: u32 = 4 << 20;
/// A block, the unit of checksum, of version and of atomicity: 4 KiB.
pub const BLOCK_BYTES: u32 = 4096;
/// A unit, of which an extent has 64: an aligned range in which a disk gives out space as a whole, the most that one write
/// changes as a whole unless it is asked to, and what a prepared change is inside of.
pub const UNIT_BYTES: u32 = 64 << 10;
/// The most that a write changes as a whole when it is asked to, inside an aligned range of so many bytes.
pub const ATOMIC_BYTES_MAX: u32 = 1 << 20;
/// Blocks in an extent.
pub const EXTENT_BLOCKS: u32 = EXTENT_BYTES / BLOCK_BYTES;

/// Body of a node protocol frame (fixed fields and lists, not bulk data).
pub const FRAME_BODY_BYTES_MAX: u32 = 1 << 20;
/// Bulk data of a node protocol frame: one extent.
pub const FRAME_DATA_BYTES_MAX: u32 = EXTENT_BYTES;
/// Requests that one connection of the node protocol may have unanswered; a node stops reading at it.
pub const NODE_INFLIGHT_MAX: usize = 1024;
/// Silence after which a node gives a sign of life on a connection.
pub const NODE_ALIVE_MS: u64 = 250;
/// For how long a disk lets an owner answer reads.
pub const GRANT_MS_MAX: u32 = 1500;
/// For how long a disk keeps the next owner waiting for it: longer, because clocks do not run at the same rate, and have
/// steps.
pub const GRANT_KEPT_MS_MAX: u32 = GRANT_MS_MAX + GRANT_MS_MAX / 10 + 1;
/// Extents named in one answer of the node protocol; the rest is asked for again from the last one.
pub const NODE_LIST_MAX: usize = 4096;
/// Extents that one request of the node protocol drops from a disk.
pub const NODE_DROPPED_EXTENTS_MAX: usize = 256;
/// Runs of damaged blocks named in one answer of the node protocol; the rest is named once these are repaired.
pub const NODE_DAMAGED_RUNS_MAX: usize = 64;

/// A volume: 1 PiB.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Characters of a volume's, pool's or gateway's name.
pub const NAME_CHARS_MAX: usize = 63;
/// Units of one extent in which a change is prepared.
pub const EXTENT_PREPARED_MAX: usize = 48;

/// Volumes, and as many targets, of a cluster.
pub const VOLUMES_MAX: usize = 65_536;
/// LUN numbers of a target: 0 to this, exclusive (flat space addressing, SAM-5 4.7.7.3).
pub const LUNS_PER_TARGET_MAX: u16 = 16_383;
/// Stripe unit of a striped volume.
pub const STRIPE_UNIT_BYTES_MIN: u32 = 16 << 10;
/// Stripe unit of a striped volume.
pub const STRIPE_UNIT_BYTES_MAX: u32 = 1 << 20;
/// Stripe width of a striped volume, in extents.
pub const STRIPE_WIDTH_MAX: u16 = 64;
/// Copies that a replicated pool keeps.
pub const REPLICAS_MAX: u8 = 5;
/// Partitions of a pool.
pub const PARTITIONS_MAX: u32 = 65_536;
/// Partitions of a pool when none are named.
pub const PARTITIONS_DEFAULT: u32 = 4096;

/// Commands that one iSCSI session may have outstanding (the command window, RFC 7143 4.2.2.1).
pub const SESSION_COMMANDS_MAX: u32 = 128;
/// iSCSI name (RFC 7143 4.2.7.1).
pub const ISCSI_NAME_BYTES_MAX: usize = 223;
/// MaxRecvDataSegmentLength that the target declares.
pub const ISCSI_RECV_SEGMENT_BYTES: u32 = 256 << 10;
/// Data segment accepted before login has finished (RFC 7143 13.12: the default of the key).
pub const ISCSI_LOGIN_SEGMENT_BYTES: u32 = 8192;
/// Text that one login or text exchange may gather over continued PDUs.
pub const ISCSI_TEXT_BYTES_MAX: usize = 64 << 10;
/// Keys in one login or text exchange.
pub const ISCSI_TEXT_KEYS_MAX: usize = 64;
/// Data of one SCSI command: 8 MiB, advertised as MAXIMUM TRANSFER LENGTH (SBC-3 6.5.3).
pub const SCSI_TRANSFER_BYTES_MAX: u32 = 8 << 20;
/// Sessions of one gateway.
pub const SESSIONS_MAX: usize = 16_384;
/// Sessions of one initiator name at one gateway: some hundred targets, each over several paths.
pub const SESSIONS_PER_INITIATOR_MAX: usize = 1024;
/// Connections that have not finished login, over all addresses.
pub const PRELOGIN_CONNECTIONS_MAX: usize = 4096;
/// Connections that have not finished login, of one address.
pub const PRELOGIN_CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// Time to finish a login.
pub const LOGIN_TIMEOUT_MS: u64 = 10_000;
/// Failed CHAP attempts of one initiator name from one address within [`CHAP_WINDOW_MS`].
pub const CHAP_FAILURES_MAX: usize = 5;
/// Time after which a failed CHAP attempt is forgotten.
pub const CHAP_WINDOW_MS: u64 = 10_000;
/// Initiator names with failed CHAP attempts that are remembered of one address.
pub const CHAP_NAMES_PER_ADDRESS_MAX: usize = 64;
/// Initiator names with failed CHAP attempts that are remembered over all addresses.
pub const CHAP_NAMES_MAX: usize = 4096;
/// Registrations of one logical unit (SPC-4 5.13.7).
pub const REGISTRANTS_MAX: usize = 1024;

/// Commands that a load on a volume (`lunette bench`) has under way at a time.
pub const LOAD_DEPTH_MAX: u32 = 1024;
/// Data of the commands that a load has under way.
pub const LOAD_INFLIGHT_BYTES_MAX: u64 = 128 << 20;
/// For how long a load goes on: an hour.
pub const LOAD_MS_MAX: u64 = 3_600_000;
/// Loads of one gateway.
pub const LOADS_MAX: usize = 8;
/// A load of which nobody has wanted to know for so long ends.
pub const LOAD_LEASE_MS: u64 = 5000;
