//! CHAP (RFC 7143 12.1.3, RFC 1994): the target challenges the initiator, and answers its challenge.
//!
//! ```text
//! I -> CHAP_A=list                          T -> CHAP_A, CHAP_I, CHAP_C
//! I -> CHAP_N, CHAP_R [, CHAP_I, CHAP_C]    T -> [CHAP_N, CHAP_R]
//! ```
//!
//! Every way to fail looks the same to the peer: status 0201 after the same work, whether the name
//! or the secret was wrong. Lengths are bounded before anything is decoded.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lunette_proto::iscsi::text;
use lunette_proto::map::{Chap, ChapAlgorithm, Sealed};
use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

use bytes::BytesMut;

/// Longest challenge (RFC 7143 12.1.3).
const CHALLENGE_BYTES_MAX: usize = 1024;
/// Longest user name, as any text value (RFC 7143 6.1).
const NAME_BYTES_MAX: usize = 255;
/// Algorithms that an offer may list.
const OFFERS_MAX: usize = 16;
/// Our challenges are as long as the longest response.
pub(super) const OUR_CHALLENGE_BYTES: usize = 32;

/// Opens what the replicated state keeps sealed.
pub trait Secrets: Send + Sync {
    /// The secret; `None` if it was sealed under a key that is not here.
    fn unseal(&self, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>>;
}

/// Authentication failed. Why is for the log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    /// No algorithm is both offered and allowed.
    #[error("no algorithm in common")]
    Algorithm,
    /// A key is missing, came twice, or cannot be decoded.
    #[error("malformed keys")]
    Keys,
    /// The name or the response is wrong.
    #[error("wrong name or secret")]
    Refused,
    /// The initiator sent our own challenge back, or shares one secret for both directions.
    #[error("reflection")]
    Reflection,
    /// The initiator wants the target to authenticate, which has no secret for that.
    #[error("mutual authentication is not configured")]
    NotMutual,
    /// A secret cannot be opened, or is empty.
    #[error("the secret cannot be opened, or is empty")]
    Sealed,
}

/// The challenge that was sent.
#[derive(Debug)]
pub(super) struct Challenge {
    algorithm: ChapAlgorithm,
    id: u8,
    challenge: [u8; OUR_CHALLENGE_BYTES],
}

impl Challenge {
    /// Chooses from CHAP_A, in the target's order of preference, and appends the challenge.
    pub(super) fn begin(
        chap: &Chap,
        offers: &str,
        random: &mut dyn FnMut(&mut [u8]),
        out: &mut BytesMut,
    ) -> Result<Self, ChapError> {
        if offers.split(',').count() > OFFERS_MAX {
            return Err(ChapError::Algorithm);
        }
        let offered = |algorithm: &&ChapAlgorithm| {
            let number = algorithm.number().to_string();
            offers.split(',').any(|offer| offer == number)
        };
        let algorithm = *chap.algorithms.iter().find(offered).ok_or(ChapError::Algorithm)?;
        let mut bytes = [0; OUR_CHALLENGE_BYTES + 1];
        random(&mut bytes);
        let (id, challenge) = (bytes[OUR_CHALLENGE_BYTES], std::array::from_fn(|at| bytes[at]));
        text::push(out, "CHAP_A", &algorithm.number().to_string());
        text::push(out, "CHAP_I", &id.to_string());
        text::push(out, "CHAP_C", &hex(&challenge));
        Ok(Self { algorithm, id, challenge })
    }

    /// What was sent as CHAP_C.
    pub(super) fn bytes(&self) -> &[u8; OUR_CHALLENGE_BYTES] {
        &self.challenge
    }

    /// Verifies the initiator's keys; appends the target's own proof if it was asked for.
    /// Gives the user's name.
    pub(super) fn finish(
        self,
        chap: &Chap,
        pairs: &[(&str, &str)],
        secrets: &dyn Secrets,
        out: &mut BytesMut,
    ) -> Result<String, ChapError> {
        let [name, response, id, challenge] = take(pairs, ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"])?;
        let name = name.filter(|name| name.len() <= NAME_BYTES_MAX).ok_or(ChapError::Keys)?;
        let response = decode(response.ok_or(ChapError::Keys)?, output_len(self.algorithm))?;
        let secret = unseal(secrets, &chap.initiator.secret)?;
        let expected = respond(self.algorithm, self.id, &secret, &self.challenge);
        // Both are computed before either is looked at.
        let name_is_right = verify_slices_are_equal(name.as_bytes(), chap.initiator.user.as_bytes()).is_ok();
        let response_is_right = verify_slices_are_equal(&response, &expected).is_ok();
        if !(name_is_right & response_is_right) {
            return Err(ChapError::Refused);
        }
        match (id, challenge) {
            (None, None) => {}
            (Some(id), Some(challenge)) => self.prove(chap, id, challenge, &secret, secrets, out)?,
            _ => return Err(ChapError::Keys),
        }
        Ok(name.to_owned())
    }

    fn prove(
        &self,
        chap: &Chap,
        id: &str,
        challenge: &str,
        initiator_secret: &[u8],
        secrets: &dyn Secrets,
        out: &mut BytesMut,
    ) -> Result<(), ChapError> {
        let credential = chap.target.as_ref().ok_or(ChapError::NotMutual)?;
        let id = number(id).ok_or(ChapError::Keys)?;
        let challenge = decode(challenge, CHALLENGE_BYTES_MAX)?;
        if challenge.is_empty() {
            return Err(ChapError::Keys);
        }
        let secret = unseal(secrets, &credential.secret)?;
        // RFC 7143 9.2.1: a target must not answer its own challenge, nor share a secret both ways.
        if challenge == self.challenge || verify_slices_are_equal(&secret, initiator_secret).is_ok() {
            return Err(ChapError::Reflection);
        }
        text::push(out, "CHAP_N", &credential.user);
        text::push(out, "CHAP_R", &hex(&respond(self.algorithm, id, &secret, &challenge)));
        Ok(())
    }
}

/// An empty secret proves nothing, so it is as good as none.
fn unseal(secrets: &dyn Secrets, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, ChapError> {
    secrets.unseal(sealed).filter(|secret| !secret.is_empty()).ok_or(ChapError::Sealed)
}

/// Picks each key once; others are an error, for no other key belongs to this step.
fn take<'a, const N: usize>(
    pairs: &[(&'a str, &'a str)],
    keys: [&str; N],
) -> Result<[Option<&'a str>; N], ChapError> {
    let mut values = [None; N];
    for (key, value) in pairs {
        let slot = keys.iter().position(|name| name == key).ok_or(ChapError::Keys)?;
        if values[slot].replace(*value).is_some() {
            return Err(ChapError::Keys);
        }
    }
    Ok(values)
}

/// What a peer that knows `secret` answers to a challenge: H(id, secret, challenge).
#[must_use]
pub fn respond(algorithm: ChapAlgorithm, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
    let hash = |algorithm: &'static digest::Algorithm| {
        let mut context = digest::Context::new(algorithm);
        for part in [&[id], secret, challenge] {
            context.update(part);
        }
        context.finish().as_ref().to_vec()
    };
    match algorithm {
        ChapAlgorithm::Md5 => {
            Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
        }
        ChapAlgorithm::Sha1 => hash(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        ChapAlgorithm::Sha256 => hash(&digest::SHA256),
        ChapAlgorithm::Sha3_256 => hash(&digest::SHA3_256),
    }
}

fn output_len(algorithm: ChapAlgorithm) -> usize {
    match algorithm {
        ChapAlgorithm::Md5 => 16,
        ChapAlgorithm::Sha1 => 20,
        ChapAlgorithm::Sha256 | ChapAlgorithm::Sha3_256 => 32,
    }
}

/// CHAP_I: one byte, decimal or hexadecimal.
fn number(value: &str) -> Option<u8> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|digit| digit.is_ascii_hexdigit()) => u8::from_str_radix(hex, 16).ok(),
        None if value.bytes().all(|digit| digit.is_ascii_digit()) => value.parse().ok(),
        _ => None,
    }
}

/// A binary value in hexadecimal or base64 (RFC 7143 6.1), at most `max` bytes.
fn decode(value: &str, max: usize) -> Result<Vec<u8>, ChapError> {
    let (prefix, digits) = value.split_at_checked(2).ok_or(ChapError::Keys)?;
    let bytes = match prefix {
        "0x" | "0X" if digits.len() <= 2 * max => unhex(digits),
        "0b" | "0B" if digits.len() <= max.div_ceil(3) * 4 => STANDARD.decode(digits).ok(),
        _ => None,
    };
    bytes.filter(|bytes| bytes.len() <= max).ok_or(ChapError::Keys)
}

/// An odd number of digits has a leading zero left out.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (head, pairs) = digits.as_bytes().split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    for digit in head {
        bytes.push(value(*digit)?);
    }
    for pair in pairs.chunks_exact(2) {
        bytes.push(value(pair[0])? << 4 | value(pair[1])?);
    }
    Some(bytes)
}

/// `0x` and the digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lunette_proto::map::ChapCredential;

    use super::*;

    /// Guards the four hashes against values of other implementations (openssl dgst over 01 "secret" 02).
    #[test]
    fn hashes() {
        for (algorithm, expected) in [
            (ChapAlgorithm::Md5, MD5),
            (ChapAlgorithm::Sha1, SHA1),
            (ChapAlgorithm::Sha256, SHA256),
            (ChapAlgorithm::Sha3_256, SHA3_256),
        ] {
            let response = respond(algorithm, 1, b"secret", &[2]);
            assert_eq!(hex(&response), expected);
            assert_eq!(response.len(), output_len(algorithm));
        }
    }

    const MD5: &str = "0x26e2404abf0a021266913811ae589855";
    const SHA1: &str = "0x04e6caa1dc13b98d655d7d1f79ea0da0d231469f";
    const SHA256: &str = "0x1f3e2835938e3e99b74b4c3f035673a2ac9df67272952f3efc2833ddd460227f";
    const SHA3_256: &str = "0x96b3949ed93a57bacb4351c4128b26056628a3760978115167f0d1d5097d25a1";

    /// Guards against replays: no challenge of the system's source comes twice, nor does a fixed id.
    #[test]
    fn challenges_differ() {
        let credential = ChapCredential { user: "a".into(), secret: Sealed(Vec::new()) };
        let chap = Chap { initiator: credential, target: None, algorithms: vec![ChapAlgorithm::Sha256] };
        let mut random = |bytes: &mut [u8]| aws_lc_rs::rand::fill(bytes).unwrap();
        let (mut challenges, mut ids) = (HashSet::new(), HashSet::new());
        for _ in 0..100_000 {
            let mut out = BytesMut::new();
            let challenge = Challenge::begin(&chap, "7", &mut random, &mut out).unwrap();
            let told = format!("CHAP_A=7\0CHAP_I={}\0CHAP_C={}\0", challenge.id, hex(challenge.bytes()));
            assert_eq!(out, told);
            ids.insert(challenge.id);
            assert!(challenges.insert(*challenge.bytes()));
        }
        assert_eq!(ids.len(), 256);
    }

    /// Guards decoding: both encodings, odd digits, and every bound before the decoding.
    #[test]
    fn encodings() {
        assert_eq!(decode("0x0102ff", 16), Ok(vec![1, 2, 255]));
        assert_eq!(decode("0X102", 16), Ok(vec![1, 2]));
        assert_eq!(decode("0bAQL/", 16), Ok(vec![1, 2, 255]));
        assert_eq!(decode("0x", 16), Ok(vec![]));
        for wrong in ["", "0", "1234", "0xzz", "0x+1", "0b!!!!", "0bAQL", "0é12"] {
            assert_eq!(decode(wrong, 16), Err(ChapError::Keys), "{wrong}");
        }
        assert_eq!(decode(&format!("0x{}", "00".repeat(17)), 16), Err(ChapError::Keys));
        assert_eq!(decode(&format!("0b{}", "AAAA".repeat(6)), 16), Err(ChapError::Keys));
        assert_eq!(number("255"), Some(255));
        assert_eq!(number("0xff"), Some(255));
        for wrong in ["256", "-1", "+1", "", "0x", "0x100", "a"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
