//! The mode pages of a volume (SPC-4 7.5; SBC-3 6.5): one table, in ascending order, which MODE SENSE shows and MODE
//! SELECT is checked against.

use smallvec::SmallVec;

use super::unit::Modes;

/// A mode page, from its page code on.
pub(super) type Page = SmallVec<[u8; 32]>;

/// A mode page of the table: its content with these bits of [`Modes`], and which of its bits can be changed.
pub(super) struct Row {
    pub(super) code: u8,
    /// Not 0: the page has the format with a subpage code.
    pub(super) subpage: u8,
    pub(super) content: fn(modes: u8) -> Page,
    pub(super) changeable: fn() -> Page,
}

pub(super) const CACHING: u8 = 0x08;
pub(super) const CONTROL: u8 = 0x0A;

/// Mode pages, in ascending order.
pub(super) static PAGES: [Row; 5] = [
    Row { code: 0x01, subpage: 0, content: error_recovery, changeable: || page(0x01, 12) },
    Row { code: CACHING, subpage: 0, content: caching, changeable: || caching(Modes::WCE) },
    Row {
        code: CONTROL,
        subpage: 0,
        content: control,
        changeable: || control_bits(Modes::D_SENSE | Modes::SWP),
    },
    Row {
        code: CONTROL,
        subpage: 0x01,
        content: control_extension,
        changeable: || subpage(CONTROL, 0x01, 32),
    },
    Row { code: 0x1C, subpage: 0, content: informational_exceptions, changeable: || page(0x1C, 12) },
];

impl Row {
    /// Bytes before the parameters.
    pub(super) fn header_len(&self) -> usize {
        if self.subpage == 0 { 2 } else { 4 }
    }
}

/// Read-Write Error Recovery: bad copies are repaired from good ones.
fn error_recovery(_: u8) -> Page {
    const AWRE_ARRE: u8 = 0x80 | 0x40;
    let mut page = page(0x01, 12);
    page[2] = AWRE_ARRE;
    page
}

/// Caching.
fn caching(modes: u8) -> Page {
    let mut page = page(CACHING, 20);
    page[2] = u8::from(modes & Modes::WCE != 0) << 2;
    page
}

/// Control (SPC-4 7.5.8): unrestricted reordering, no limit on BUSY.
fn control(modes: u8) -> Page {
    let mut page = control_bits(modes);
    page[3] = 0x10;
    page[8] = 0xFF;
    page[9] = 0xFF;
    page
}

fn control_bits(modes: u8) -> Page {
    let mut page = page(CONTROL, 12);
    page[2] = u8::from(modes & Modes::D_SENSE != 0) << 2;
    page[4] = u8::from(modes & Modes::SWP != 0) << 3;
    page
}

/// Control Extension (SPC-4 7.5.9): access states change by themselves, as TPGS says.
fn control_extension(_: u8) -> Page {
    const IALUAE: u8 = 0x01;
    let mut page = subpage(CONTROL, 0x01, 32);
    page[4] = IALUAE;
    page
}

/// Informational Exceptions Control (SPC-4 7.5.12): a volume predicts no failure of its own. Its disks' failures are
/// the cluster's business.
fn informational_exceptions(_: u8) -> Page {
    const DEXCPT: u8 = 0x08;
    let mut page = page(0x1C, 12);
    page[2] = DEXCPT;
    page
}

/// A page of zeros, `len` bytes with its header.
fn page(code: u8, len: u8) -> Page {
    let mut page = SmallVec::from_elem(0, usize::from(len));
    page[0] = code;
    page[1] = len - 2;
    page
}

/// The same with a subpage code.
fn subpage(code: u8, subpage: u8, len: u8) -> Page {
    const SPF: u8 = 0x40;
    let mut page = SmallVec::from_elem(0, usize::from(len));
    page[0] = SPF | code;
    page[1] = subpage;
    page[3] = len - 4;
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the table: ascending, and every page's header says what the page is (SPC-4 7.5.7).
    #[test]
    fn pages_are_well_formed() {
        assert!(
            PAGES.windows(2).all(|pair| (pair[0].code, pair[0].subpage) < (pair[1].code, pair[1].subpage))
        );
        for row in &PAGES {
            let content = (row.content)(0xFF);
            let changeable = (row.changeable)();
            let header = row.header_len();
            assert_eq!(content[..header], changeable[..header]);
            assert_eq!(content.len(), changeable.len());
            assert_eq!(content[0] & 0x3F, row.code);
            assert_eq!(content[0] & 0x40 != 0, row.subpage != 0);
            assert_eq!(usize::from(content[header - 1]), content.len() - header, "PAGE LENGTH");
        }
    }
}
