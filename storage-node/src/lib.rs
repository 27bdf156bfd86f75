//! A storage node: disks, and the server of the node protocol in front of them.
//!
//! ```text
//!     serve (TCP, frames) ──┐
//!                           ├──> Node (by disk id) ──> Engine ──> Store ──> directory, file or device
//!     a call in-process  ───┘
//! ```
//!
//! A node is simple and strict: it keeps versioned blocks, refuses whoever is not the sealed owner,
//! and answers a change when it is durable. Who owns what, where copies lie and what is repaired is
//! decided elsewhere.
//!
//! [`format_disk`] makes a disk, [`Node::open`] opens disks, [`serve`] serves them over TCP; a gateway in the same
//! process calls the node directly, through [`Service`](lunette_proto::node::Service).

pub mod engine;
pub mod grants;
pub mod inspect;
mod node;
mod server;
#[cfg(test)]
mod sim;
pub mod store;

pub use engine::{DamageCounts, DiskConfig, DiskError, ScrubStatus};
pub use node::{DiskStatus, Node};
pub use server::serve;
pub use store::{FormatOptions, Identity, format_disk, inspect_identity};
