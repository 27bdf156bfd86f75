//! A record as it lies in the store: CRC-32C (4 bytes, little-endian) of what follows, then postcard.
//!
//! redb checks its own pages only when it repairs; this is checked whenever a record is read, so that
//! a flipped bit stops the member instead of becoming configuration.

use lunette_proto::checksum::crc32c;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

const CRC_BYTES: usize = 4;

/// The record of a value.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut record = postcard::to_extend(value, vec![0; CRC_BYTES])?;
    let (crc, body) = record.split_at_mut(CRC_BYTES);
    crc.copy_from_slice(&crc32c(body).to_le_bytes());
    Ok(record)
}

/// The value of a record; `what` names it when it is damaged.
pub(crate) fn decode<T: DeserializeOwned>(record: &[u8], what: &'static str) -> Result<T, StoreError> {
    whole(body(record, what)?, what)
}

/// What a record bears, behind its checksum.
pub(super) fn body<'a>(record: &'a [u8], what: &'static str) -> Result<&'a [u8], StoreError> {
    let (crc, body) = record.split_first_chunk::<CRC_BYTES>().ok_or(StoreError::Damaged { what })?;
    if u32::from_le_bytes(*crc) != crc32c(body) {
        return Err(StoreError::Damaged { what });
    }
    Ok(body)
}

/// The value that fills `body`.
pub(super) fn whole<T: DeserializeOwned>(body: &[u8], what: &'static str) -> Result<T, StoreError> {
    let (value, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() { Ok(value) } else { Err(StoreError::Damaged { what }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against damage on the disk: no flipped bit, cut or addition passes as a value.
    #[test]
    fn damage_is_seen() {
        let value = (7u64, "name".to_owned());
        let record = encode(&value).expect("encodes");
        assert_eq!(decode::<(u64, String)>(&record, "pair").expect("decodes"), value);
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(u64, String)>(&damaged, "pair").is_err());
        }
        for len in 0..record.len() {
            assert!(decode::<(u64, String)>(&record[..len], "pair").is_err());
        }
        let longer = encode(&(7u64, "name".to_owned(), 0u8)).expect("encodes");
        assert!(decode::<(u64, String)>(&longer, "pair").is_err());
    }
}
