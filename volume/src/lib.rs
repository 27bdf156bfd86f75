//! A volume's owner: the client data path of Lunette.
//!
//! ```text
//!     front end --> device::BlockDevice --> volumes: shell --> owner: state machine, no I/O
//!                                              |                 layout: addresses to extents
//!                                              `--> fabric --> client: the node protocol over TCP
//! ```
//!
//! - [`device`]: what the front end sees, a contract;
//! - [`volumes`]: all volumes of a gateway, driven by cluster maps;
//! - [`owner`]: one volume's owner: order, replication, takeover, repair;
//! - [`layout`]: plain and striped volumes;
//! - [`fabric`], [`client`]: the ways to storage nodes;
//! - [`load`]: a load on a device, measured.

pub mod client;
pub mod device;
pub mod fabric;
pub mod layout;
pub mod load;
pub mod owner;
pub mod volumes;

#[cfg(test)]
mod sim;
