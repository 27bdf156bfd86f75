//! Bytes to values and back, without I/O: everything that two parts of Lunette say to each other.
//!
//! - [`ids`]: the names of things (node, disk, volume, extent, generation, version);
//! - [`map`]: the cluster map, the one value that says what exists and where it lies;
//! - [`node`]: the node protocol, spoken by a volume's owner to the storage nodes;
//! - [`iscsi`]: iSCSI PDUs and text keys (RFC 7143);
//! - [`checksum`]: CRC-32C, the one polynomial on the wire and on disk;
//! - [`limits`]: every maximum.
//!
//! The gRPC API's `.proto` files lie in `proto/api`; the `control` crate generates their code.

pub mod checksum;
pub mod ids;
pub mod iscsi;
pub mod limits;
pub mod map;
pub mod node;
