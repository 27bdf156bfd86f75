//! The whole of Lunette from outside: what its tests share.
//!
//! ```text
//! tests/tests/*.rs --start--> lunette up        (server.rs)
//!        |                       ^   ^
//!        +--- stock clients -----+   |          (command.rs, conformance.rs, guest.rs, image.rs)
//!        +--- an initiator of our own ---+      (initiator.rs, pdu.rs)
//! ```
//!
//! Nothing of Lunette is linked in: a test sees what an operator and an initiator see. That also
//! makes the bytes of [`pdu`] a second reading of RFC 7143 beside the product's own. One test program
//! is different: `tests/power` has a storage node to itself, on a disk that fails ([`faultdisk`]). And `tests/nodes` opens
//! the disks of a cluster that has ended, to compare the copies.
//!
//! Helpers panic with what they saw: they run in tests only, and the message is the failure report.

pub mod administrator;
pub mod binary;
pub mod command;
pub mod conformance;
pub mod faultdisk;
pub mod guest;
pub mod image;
pub mod initiator;
pub mod pdu;
pub mod ports;
pub mod processes;
pub mod random;
pub mod server;
pub mod vpd;

pub use command::{Outcome, run};
pub use initiator::Initiator;
pub use server::{Lunette, iqn};
