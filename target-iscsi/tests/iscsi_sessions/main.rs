//! iSCSI sessions from outside, packet by packet, against a device in memory. No sockets and no
//! clock, but for `sockets.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bed;
mod chap;
mod copy;
mod data;
mod device;
mod discovery;
mod drain;
mod exhaustion;
mod exports;
mod fuzz;
mod gateways;
mod hostile;
mod initiator;
mod login;
mod management;
mod modes;
mod pitfalls;
mod reinstatement;
mod reservations;
mod sockets;
mod stalled;
mod units;
mod window;
