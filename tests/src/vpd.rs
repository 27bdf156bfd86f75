//! What identifies a logical unit: VPD pages 80h and 83h (SPC-4, 7.8).

use crate::initiator::Initiator;

/// A logical unit's names, as initiators tell volumes apart by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number.
    pub serial: String,
    /// The NAA designator as hex digits; Linux's name of the disk is `3` and these, or `wwn-0x` and these.
    pub naa: String,
}

impl Identity {
    /// Asks the logical unit.
    ///
    /// # Panics
    /// If a page is malformed, or there is not exactly one NAA designator of the logical unit.
    #[must_use]
    pub fn of(initiator: &mut Initiator) -> Self {
        let serial = initiator.vpd(0x80);
        assert_eq!(serial.get(1), Some(&0x80), "page code of {serial:x?}");
        let page = initiator.vpd(0x83);
        let naa: Vec<_> = designators(&page).into_iter().filter(|found| found.kind == 3).collect();
        assert_eq!(naa.len(), 1, "one NAA designator of the logical unit in {page:x?}");
        Self {
            serial: String::from_utf8(serial.get(4..).expect("a page header").to_vec())
                .expect("an ASCII serial number"),
            naa: naa[0].value.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// A designator of VPD page 83h.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Designator {
    /// DESIGNATOR TYPE: 1 T10, 3 NAA, 4 relative target port, 5 target port group, 8 SCSI name string.
    pub kind: u8,
    /// ASSOCIATION: 0 logical unit, 1 target port, 2 target device.
    pub association: u8,
    /// DESIGNATOR.
    pub value: Vec<u8>,
}

/// The designators of VPD page 83h.
///
/// # Panics
/// If a length leads out of the page.
#[must_use]
pub fn designators(page: &[u8]) -> Vec<Designator> {
    assert!(page.len() >= 4 && page[1] == 0x83, "not page 83h: {page:x?}");
    let length = usize::from(u16::from_be_bytes([page[2], page[3]]));
    let mut rest =
        page.get(4..4 + length).unwrap_or_else(|| panic!("page 83h is shorter than it says: {page:x?}"));
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(*rest.get(3).expect("a designator header"));
        let value = rest.get(4..4 + length).expect("a designator that ends within the page").to_vec();
        found.push(Designator { kind: rest[1] & 0x0f, association: rest[1] >> 4 & 0x03, value });
        rest = &rest[4 + length..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn designators_are_taken_apart() {
        // Guards against a harness that reads another name than Linux does.
        let page = [0, 0x83, 0, 16, 1, 0x03, 0, 4, 0x60, 1, 2, 3, 1, 0x94, 0, 4, 0, 0, 0, 1];
        assert_eq!(
            designators(&page),
            [
                Designator { kind: 3, association: 0, value: vec![0x60, 1, 2, 3] },
                Designator { kind: 4, association: 1, value: vec![0, 0, 0, 1] },
            ]
        );
    }
}
