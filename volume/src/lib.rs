//! A volume's owner: the client data path of Lunette.

pub mod device;
pub mod layout;
pub mod owner;
#[cfg(test)]
mod sim;
