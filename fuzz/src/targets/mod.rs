//! The targets, one in a file.

pub(crate) mod commands;
pub(crate) mod disk;
pub(crate) mod framer;
pub(crate) mod login;
pub(crate) mod node_frames;
mod phrases;
pub(crate) mod session;
pub(crate) mod text;
