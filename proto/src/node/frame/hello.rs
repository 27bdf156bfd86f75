//! The greeting of a connection: who speaks, to which cluster, in which version.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::fields::Fields;
use super::header::{Header, Kind};
use super::{EncodeError, FrameError, HELLO_NAME_BYTES_MAX, PROTOCOL_VERSION};
use crate::ids::ClusterId;

/// A range of protocol versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolVersions {
    /// The lowest.
    pub min: u8,
    /// The highest.
    pub max: u8,
}

impl ProtocolVersions {
    /// What this code speaks.
    pub const SUPPORTED: Self = Self { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION };

    /// The highest version in both ranges.
    #[must_use]
    pub fn highest_common(self, other: Self) -> Option<u8> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl fmt::Display for ProtocolVersions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// The first frame of the side that connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// The versions that it speaks.
    pub versions: ProtocolVersions,
    /// Its name, for the node's logs.
    pub name: String,
}

impl Hello {
    /// The greeting of a member of `cluster`.
    #[must_use]
    pub fn new(cluster: ClusterId, name: impl Into<String>) -> Self {
        Self { cluster, versions: ProtocolVersions::SUPPORTED, name: name.into() }
    }

    /// What a node of `cluster` called `name` answers.
    #[must_use]
    pub fn answer(&self, cluster: ClusterId, name: &str) -> HelloAck {
        if self.cluster != cluster {
            return HelloAck::WrongCluster { cluster };
        }
        match self.versions.highest_common(ProtocolVersions::SUPPORTED) {
            Some(version) => HelloAck::Accepted { cluster, version, name: name.to_owned() },
            None => HelloAck::NoCommonVersion { cluster, versions: ProtocolVersions::SUPPORTED },
        }
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let name_len = name_len(&self.name)?;
        out.put_u128_le(self.cluster.0);
        out.put_u8(self.versions.min);
        out.put_u8(self.versions.max);
        out.put_u16_le(name_len);
        out.put_slice(self.name.as_bytes());
        Ok(())
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::new(Kind::Hello, body);
        let cluster = fields.cluster()?;
        let versions = versions(&mut fields)?;
        let name = name(&mut fields)?;
        fields.end()?;
        Ok(Self { cluster, versions, name })
    }
}

/// The node's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloAck {
    /// Requests may follow.
    Accepted {
        /// The node's cluster, which is the asker's.
        cluster: ClusterId,
        /// The version of all further frames.
        version: u8,
        /// The node's name, for the asker's logs.
        name: String,
    },
    /// The node belongs to another cluster; it closes the connection.
    WrongCluster {
        /// The node's cluster.
        cluster: ClusterId,
    },
    /// The two have no protocol version in common; the node closes the connection.
    NoCommonVersion {
        /// The node's cluster.
        cluster: ClusterId,
        /// What the node speaks.
        versions: ProtocolVersions,
    },
}

impl fmt::Display for HelloAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { version, name, .. } => write!(f, "{name} accepted, protocol version {version}"),
            Self::WrongCluster { cluster } => write!(f, "this node belongs to cluster {cluster}"),
            Self::NoCommonVersion { versions, .. } => {
                write!(f, "protocol version not supported; this node speaks version {versions}")
            }
        }
    }
}

const ACCEPTED: u8 = 0;
const WRONG_CLUSTER: u8 = 1;
const NO_COMMON_VERSION: u8 = 2;

impl HelloAck {
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Accepted { .. } => ACCEPTED,
            Self::WrongCluster { .. } => WRONG_CLUSTER,
            Self::NoCommonVersion { .. } => NO_COMMON_VERSION,
        }
    }

    pub(super) fn encode_body(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let none = ProtocolVersions { min: 0, max: 0 };
        let (cluster, versions, chosen, name) = match self {
            Self::Accepted { cluster, version, name } => (*cluster, none, *version, name.as_str()),
            Self::WrongCluster { cluster } => (*cluster, none, 0, ""),
            Self::NoCommonVersion { cluster, versions } => (*cluster, *versions, 0, ""),
        };
        let name_len = name_len(name)?;
        out.put_u128_le(cluster.0);
        out.put_u8(versions.min);
        out.put_u8(versions.max);
        out.put_u8(chosen);
        out.put_u8(0);
        out.put_u16_le(name_len);
        out.put_slice(name.as_bytes());
        Ok(())
    }

    pub(super) fn decode(header: &Header, body: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::new(Kind::HelloAck, body);
        let cluster = fields.cluster()?;
        let versions = versions(&mut fields)?;
        let version = fields.u8()?;
        fields.reserved(1)?;
        let name = name(&mut fields)?;
        fields.end()?;
        match header.status {
            ACCEPTED => Ok(Self::Accepted { cluster, version, name }),
            WRONG_CLUSTER => Ok(Self::WrongCluster { cluster }),
            NO_COMMON_VERSION => Ok(Self::NoCommonVersion { cluster, versions }),
            _ => Err(FrameError::Field("status")),
        }
    }
}

fn versions(fields: &mut Fields<'_>) -> Result<ProtocolVersions, FrameError> {
    let versions = ProtocolVersions { min: fields.u8()?, max: fields.u8()? };
    if versions.min > versions.max { Err(FrameError::Field("versions")) } else { Ok(versions) }
}

fn name_len(name: &str) -> Result<u16, EncodeError> {
    u16::try_from(name.len())
        .ok()
        .filter(|len| usize::from(*len) <= HELLO_NAME_BYTES_MAX)
        .ok_or(EncodeError::NameTooLong(name.len()))
}

fn name(fields: &mut Fields<'_>) -> Result<String, FrameError> {
    let len = usize::from(fields.u16()?);
    if len > HELLO_NAME_BYTES_MAX {
        return Err(FrameError::Field("name"));
    }
    let bytes = fields.bytes(len)?;
    let name = std::str::from_utf8(bytes).map_err(|_| FrameError::Field("name"))?;
    // It goes into log lines.
    if name.chars().any(char::is_control) {
        return Err(FrameError::Field("name"));
    }
    Ok(name.to_owned())
}
