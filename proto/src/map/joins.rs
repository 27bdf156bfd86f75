//! How machines come to a cluster: the ids of the control plane's members, and tokens that admit.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Sealed;

/// What was given out to those that join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joins {
    /// The last id that a member of the control plane was given; 0: there is only the founder, which is 1. A member that
    /// has lost its folder gets another: it may have forgotten for whom it voted.
    pub last_member: u64,
    /// Tokens, used and expired ones too for a while, so that whoever comes with one learns why it does not admit.
    pub tokens: BTreeMap<TokenId, JoinToken>,
}

/// SHA-256 of a join token. The token itself is known to whoever joins alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 32]);

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..")
    }
}

/// A token that admits one machine, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Milliseconds since 1970 by the leader's clock, from which on it admits nobody.
    pub expires_unix_ms: u64,
    /// Whether somebody has come with it.
    pub used: bool,
    /// The cluster's key, sealed under the token.
    pub key: Sealed,
}
