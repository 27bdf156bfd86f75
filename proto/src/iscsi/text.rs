//! Text: `key=value` pairs, each ended by a zero byte (RFC 7143 6.1).
//!
//! A pair may be split over PDUs at any byte, so text is gathered first ([`Gather`]) and parsed as
//! a whole. What values mean is for the negotiation to say.

use bytes::{Bytes, BytesMut};

use crate::limits::{ISCSI_TEXT_BYTES_MAX, ISCSI_TEXT_KEYS_MAX};

/// Characters of a key (RFC 7143 6.1).
pub const KEY_BYTES_MAX: usize = 63;

/// Why a text cannot be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// More than [`ISCSI_TEXT_BYTES_MAX`] over continued PDUs.
    #[error("the text is too long")]
    TooLong,
    /// More than [`ISCSI_TEXT_KEYS_MAX`].
    #[error("too many keys")]
    TooManyKeys,
    /// A pair without `=`, or a key with other characters than keys have.
    #[error("a pair has no valid key")]
    Key,
    /// A value that is no UTF-8.
    #[error("a value is no text")]
    Value,
}

/// The pairs of `text`, in order. Empty pairs (stray zero bytes) are stepped over.
pub fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    if text.len() > ISCSI_TEXT_BYTES_MAX {
        return Err(TextError::TooLong);
    }
    let mut pairs = Vec::new();
    for pair in text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        if pairs.len() == ISCSI_TEXT_KEYS_MAX {
            return Err(TextError::TooManyKeys);
        }
        let at = pair.iter().position(|byte| *byte == b'=').ok_or(TextError::Key)?;
        let (key, value) = (&pair[..at], &pair[at + 1..]);
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.iter().all(|byte| is_key_byte(*byte)) {
            return Err(TextError::Key);
        }
        let key = std::str::from_utf8(key).map_err(|_| TextError::Key)?;
        let value = std::str::from_utf8(value).map_err(|_| TextError::Value)?;
        pairs.push((key, value));
    }
    Ok(pairs)
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-+@_#/:".contains(&byte)
}

/// Appends a pair.
pub fn push(out: &mut BytesMut, key: &str, value: &str) {
    out.reserve(key.len() + value.len() + 2);
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"=");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\0");
}

/// Gathers a text over continued PDUs (the C bit; RFC 7143 6.2), within the limit.
#[derive(Debug, Default)]
pub struct Gather {
    parts: BytesMut,
}

impl Gather {
    /// Takes the text of one PDU. Gives the whole text with the last part.
    pub fn take(&mut self, part: &Bytes, continued: bool) -> Result<Option<Bytes>, TextError> {
        if self.parts.len() + part.len() > ISCSI_TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        if !continued && self.parts.is_empty() {
            return Ok(Some(part.clone()));
        }
        self.parts.extend_from_slice(part);
        Ok((!continued).then(|| std::mem::take(&mut self.parts).freeze()))
    }

    /// Whether nothing has been gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards pairs, values with `=`, empty values and a missing last zero.
    #[test]
    fn pairs() {
        let text = b"A=1\0Bb=x=y\0\0C=\0X-com.example=v";
        assert_eq!(parse(text).unwrap(), [("A", "1"), ("Bb", "x=y"), ("C", ""), ("X-com.example", "v")]);
        assert_eq!(parse(b"").unwrap(), []);
    }

    /// Guards each refusal.
    #[test]
    fn refusals() {
        assert_eq!(parse(b"NoValue\0"), Err(TextError::Key));
        assert_eq!(parse(b"=v\0"), Err(TextError::Key));
        assert_eq!(parse(b"A b=v\0"), Err(TextError::Key));
        assert_eq!(parse(&[b"A".repeat(64), b"=1\0".to_vec()].concat()), Err(TextError::Key));
        assert!(parse(&[b"A".repeat(63), b"=1\0".to_vec()].concat()).is_ok());
        assert_eq!(parse(b"A=\xff\0"), Err(TextError::Value));
        assert_eq!(parse(&b"A=1\0".repeat(ISCSI_TEXT_KEYS_MAX + 1)), Err(TextError::TooManyKeys));
        assert_eq!(parse(&vec![0; ISCSI_TEXT_BYTES_MAX + 1]), Err(TextError::TooLong));
    }

    /// Guards continuation at any byte, and its budget.
    #[test]
    fn gathers() {
        let text = Bytes::from_static(b"Key=value\0Other=1\0");
        for at in 0..=text.len() {
            let mut gather = Gather::default();
            assert_eq!(gather.take(&text.slice(..at), true), Ok(None));
            assert_eq!(gather.take(&text.slice(at..), false), Ok(Some(text.clone())));
            assert!(gather.is_empty());
        }
        let mut gather = Gather::default();
        let part = Bytes::from(vec![b'a'; 8192]);
        for _ in 0..ISCSI_TEXT_BYTES_MAX / 8192 {
            assert_eq!(gather.take(&part, true), Ok(None));
        }
        assert_eq!(gather.take(&Bytes::from_static(b"a"), true), Err(TextError::TooLong));
    }
}
