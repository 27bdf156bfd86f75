//! Join tokens: 256 random bits that bring the cluster's key to one machine.
//!
//! ```text
//! lunette-join-CLUSTER-SECRET          CLUSTER: its id, 32 hexadecimal digits; SECRET: 64
//!
//! id  = SHA-256("lunette join token" SECRET)              what the cluster keeps, and what the machine comes with
//! key = HMAC-SHA-256(SECRET, "lunette join key")          the cluster's key is sealed under it
//! ```
//!
//! The cluster does not keep the secret, and it does not cross the network: a token is given to the machine by its
//! administrator, and the machine sends the token's id. Who listens or reads the replicated state learns the id and a
//! ciphertext, and can open nothing with them; who sends a stolen id can only use the token up.

use std::fmt::{self, Write as _};

use aws_lc_rs::{digest, hmac};
use lunette_proto::ids::ClusterId;
use lunette_proto::map::{Sealed, TokenId};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::seal::{KeyError, Sealer, UnsealError};

const PREFIX: &str = "lunette-join-";
const SECRET_BYTES: usize = 32;
/// What the id is the hash of, before the secret.
const ID: &[u8] = b"lunette join token";
/// What the key is derived with.
const KEY: &[u8] = b"lunette join key";
/// In place of a target's name, where the cluster's key is sealed.
const PLACE: &str = "join";

/// No text of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "this is no join token; `lunette cluster join-token` makes one: lunette-join-, 32 and 64 hexadecimal digits"
)]
pub struct TokenError;

/// See the module. Printing it prints no secret.
pub struct JoinToken {
    cluster: ClusterId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A new one.
    pub fn draw(cluster: ClusterId) -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(&mut *secret).map_err(|_| KeyError::Crypto)?;
        Ok(Self { cluster, secret })
    }

    /// From its text; white space around it does not count.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (cluster, digits) =
            text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(TokenError)?;
        let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex(cluster, 32) || !is_hex(digits, 2 * SECRET_BYTES) {
            return Err(TokenError);
        }
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        for (index, byte) in secret.iter_mut().enumerate() {
            let digits = digits.get(2 * index..2 * index + 2).ok_or(TokenError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| TokenError)?;
        }
        Ok(Self { cluster: cluster.parse().map_err(|_| TokenError)?, secret })
    }

    /// What [`parse`](Self::parse) takes.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 33 + 2 * SECRET_BYTES));
        // Writing to a String cannot fail.
        let _ = write!(text, "{PREFIX}{}-", self.cluster);
        for byte in self.secret.iter() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// The cluster it admits to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// What the cluster knows it by.
    #[must_use]
    pub fn id(&self) -> TokenId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(ID);
        context.update(&*self.secret);
        let mut id = [0; 32];
        id.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        TokenId(id)
    }

    /// The cluster's key, sealed under this token.
    pub(crate) fn seal(&self, key: &Sealer) -> Result<Sealed, KeyError> {
        self.sealer()?.seal(PLACE, &self.cluster.to_string(), key.bytes())
    }

    /// The cluster's key.
    pub fn unseal(&self, sealed: &Sealed) -> Result<Sealer, UnsealError> {
        let sealer = self.sealer().map_err(|_| UnsealError::Damaged)?;
        let bytes = sealer.unseal(PLACE, &self.cluster.to_string(), sealed)?;
        let bytes = bytes.first_chunk().filter(|chunk| chunk.len() == bytes.len());
        Sealer::from_bytes(bytes.ok_or(UnsealError::Damaged)?).map_err(|_| UnsealError::Damaged)
    }

    fn sealer(&self) -> Result<Sealer, KeyError> {
        let code = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*self.secret), KEY);
        let mut key = Zeroizing::new([0; 32]);
        key.iter_mut().zip(code.as_ref()).for_each(|(to, from)| *to = *from);
        Sealer::from_bytes(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xabc);

    /// Guards what an administrator copies: it reads back, and what is cut or changed is no token or another.
    #[test]
    fn text_and_back() {
        let token = JoinToken::draw(CLUSTER).expect("drawn");
        let text = token.text();
        assert_eq!(text.len(), 13 + 32 + 1 + 64);
        let read = JoinToken::parse(&format!(" {}\n", *text)).expect("the same");
        assert_eq!((read.cluster(), read.id()), (CLUSTER, token.id()));
        assert_ne!(JoinToken::draw(CLUSTER).expect("drawn").id(), token.id());
        for wrong in ["", "lunette-join-", &text[..text.len() - 1], &text[1..], &text.replace('-', "_")] {
            assert_eq!(JoinToken::parse(wrong).err(), Some(TokenError), "{wrong}");
        }
        assert_eq!(JoinToken::parse(&format!("{}0", *text)).err(), Some(TokenError));
        let mut odd = text.to_string();
        odd.replace_range(60..62, "+f");
        assert_eq!(JoinToken::parse(&odd).err(), Some(TokenError));
        assert!(!format!("{token:?}").contains(&text[46..]));
    }

    /// Guards the cluster's key: this token opens it, another does not, nor this one as another cluster's.
    #[test]
    fn brings_the_key() {
        let key = Sealer::from_bytes(&[7; 32]).expect("a key");
        let token = JoinToken::draw(CLUSTER).expect("drawn");
        let sealed = token.seal(&key).expect("sealed");
        assert_eq!(token.unseal(&sealed).expect("opens").bytes(), &[7; 32]);
        assert!(!sealed.0.windows(8).any(|window| window == [7; 8]));
        assert!(JoinToken::draw(CLUSTER).expect("drawn").unseal(&sealed).is_err());
        let other = JoinToken { cluster: ClusterId(1), secret: token.secret.clone() };
        assert!(other.unseal(&sealed).is_err());
    }
}
