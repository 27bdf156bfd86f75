//! An iSCSI target: its LUNs, who may see it, and how they prove who they are.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{TargetId, VolumeId};

/// A target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub id: TargetId,
    /// Its iSCSI name, in lower case, unique.
    pub iqn: String,
    /// What it shows, by LUN.
    pub luns: BTreeMap<u16, Lun>,
    /// Who is admitted. With none, everybody on a loopback portal and nobody elsewhere.
    pub acls: Vec<Acl>,
    /// What an initiator must prove; `None` is AuthMethod=None.
    pub chap: Option<Chap>,
    /// It is being drained: sessions are asked to log out, and nobody is admitted.
    pub draining: bool,
}

/// A logical unit of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// What it shows.
    pub volume: VolumeId,
    /// Write protected through this map.
    pub read_only: bool,
}

/// An entry that admits initiators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    /// Glob over the initiator's name: `*` any run of characters, `?` one.
    pub initiator: String,
    /// Addresses it may come from; `None` is any.
    pub from: Option<IpNet>,
}

/// CHAP of a target (RFC 7143 12.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// What the initiator proves.
    pub initiator: ChapCredential,
    /// What the target proves in turn, if asked (mutual CHAP).
    pub target: Option<ChapCredential>,
    /// Algorithms that are allowed, in order of preference.
    pub algorithms: Vec<ChapAlgorithm>,
}

/// A name and its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChapCredential {
    /// CHAP_N.
    pub user: String,
    /// The secret, sealed under the cluster's key.
    pub secret: Sealed,
}

/// CHAP_A values (RFC 7143 12.1.3, IANA's registry of iSCSI parameters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChapAlgorithm {
    /// 5
    Md5,
    /// 6
    Sha1,
    /// 7
    Sha256,
    /// 8
    Sha3_256,
}

impl ChapAlgorithm {
    /// All, in order of preference.
    pub const ALL: [Self; 4] = [Self::Sha3_256, Self::Sha256, Self::Sha1, Self::Md5];

    /// The number in CHAP_A.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3_256 => 8,
        }
    }
}

/// Ciphertext of a secret: what the replicated state holds. Printing it prints nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed(pub Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}
