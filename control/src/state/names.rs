//! What a name may look like: of volumes and their like, of iSCSI nodes (RFC 7143 4.2.7, with the
//! characters that RFC 3722 leaves), and of patterns that admit initiators.

use lunette_proto::limits::{ISCSI_NAME_BYTES_MAX, NAME_CHARS_MAX};
use lunette_proto::map::Acl;

use super::limits::LABEL_CHARS_MAX;
use super::rejection::{IqnProblem, NameKind, NameProblem, Rejection};

/// What every name of Lunette's own making starts with.
const IQN_PREFIX: &str = "iqn.2026-11.io.lunette:";

/// The target that exports a volume of this name.
#[must_use]
pub fn export_iqn(volume: &str) -> String {
    format!("{IQN_PREFIX}{volume}")
}

/// Refuses what is no name: a name can stand behind the colon of an IQN as it is.
pub fn check_name(kind: NameKind, name: &str) -> Result<(), Rejection> {
    let chars = name.chars().count();
    let problem = if chars > NAME_CHARS_MAX {
        NameProblem::TooLong { chars }
    } else {
        match name.chars().next() {
            None => NameProblem::Empty,
            Some(first @ ('-' | '.')) => NameProblem::Start(first),
            Some(_) => match name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '.')) {
                Some(wrong) => NameProblem::Character(wrong),
                None => return Ok(()),
            },
        }
    };
    // What comes from outside goes into logs and messages: bound it.
    let name = name.chars().take(NAME_CHARS_MAX + 1).collect();
    Err(Rejection::Name { kind, name, problem })
}

/// A label is for people: anything printable.
pub(super) fn check_label(field: &str, text: &str) -> Result<(), Rejection> {
    if text.chars().count() > LABEL_CHARS_MAX || text.chars().any(char::is_control) {
        let text = text.chars().take(LABEL_CHARS_MAX).collect();
        return Err(Rejection::Label { field: field.to_owned(), text });
    }
    Ok(())
}

/// The lower-case form of an iSCSI name.
///
/// Names that RFC 3722 would have to normalize beyond lower case (anything but ASCII) are refused.
pub fn normal_iqn(iqn: &str) -> Result<String, Rejection> {
    let name = iqn.to_ascii_lowercase();
    match iqn_problem(&name) {
        None => Ok(name),
        Some(problem) => {
            Err(Rejection::Iqn { iqn: iqn.chars().take(ISCSI_NAME_BYTES_MAX).collect(), problem })
        }
    }
}

fn iqn_problem(name: &str) -> Option<IqnProblem> {
    if name.len() > ISCSI_NAME_BYTES_MAX {
        return Some(IqnProblem::TooLong);
    }
    if let Some(wrong) = name.chars().find(|c| !is_iscsi_name_char(*c)) {
        return Some(IqnProblem::Character(wrong));
    }
    if let Some(hex) = name.strip_prefix("eui.") {
        return (!is_hex(hex, &[16])).then_some(IqnProblem::Eui);
    }
    if let Some(hex) = name.strip_prefix("naa.") {
        return (!is_hex(hex, &[16, 32])).then_some(IqnProblem::Naa);
    }
    let Some(rest) = name.strip_prefix("iqn.") else { return Some(IqnProblem::Type) };
    let Some((date, rest)) = rest.split_once('.') else { return Some(IqnProblem::Date) };
    if !is_date(date) {
        return Some(IqnProblem::Date);
    }
    let domain = rest.split_once(':').map_or(rest, |(domain, _)| domain);
    let label = |label: &str| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-');
    (!domain.split('.').all(label)).then_some(IqnProblem::Domain)
}

fn is_iscsi_name_char(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | ':')
}

fn is_hex(text: &str, lengths: &[usize]) -> bool {
    lengths.contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn is_date(date: &str) -> bool {
    match date.split_once('-') {
        Some((year, month)) => {
            year.len() == 4
                && month.len() == 2
                && year.chars().all(|c| c.is_ascii_digit())
                && month.parse().is_ok_and(|month: u8| (1..=12).contains(&month))
        }
        None => false,
    }
}

/// The form in which an access entry is kept: a lower-case pattern, a range without host bits.
pub fn normal_acl(acl: &Acl) -> Result<Acl, Rejection> {
    let initiator = acl.initiator.to_ascii_lowercase();
    let fits = (1..=ISCSI_NAME_BYTES_MAX).contains(&initiator.len())
        && initiator.chars().all(|c| is_iscsi_name_char(c) || matches!(c, '*' | '?'));
    if !fits {
        return Err(Rejection::AclPattern { text: initiator.chars().take(ISCSI_NAME_BYTES_MAX).collect() });
    }
    Ok(Acl { initiator, from: acl.from.map(|from| from.trunc()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(iqn: &str) -> Option<IqnProblem> {
        match normal_iqn(iqn) {
            Ok(_) => None,
            Err(Rejection::Iqn { problem, .. }) => Some(problem),
            Err(other) => panic!("{other}"),
        }
    }

    /// Guards the names that go into an IQN: everything that would not survive there is refused.
    #[test]
    fn names() {
        let problem = |name: &str| match check_name(NameKind::Volume, name) {
            Ok(()) => None,
            Err(Rejection::Name { problem, .. }) => Some(problem),
            Err(other) => panic!("{other}"),
        };
        for good in ["a", "0", "vm-1", "web.disk.0", "x".repeat(63).as_str()] {
            assert_eq!(problem(good), None, "{good}");
        }
        assert_eq!(problem(""), Some(NameProblem::Empty));
        assert_eq!(problem(&"x".repeat(64)), Some(NameProblem::TooLong { chars: 64 }));
        assert_eq!(problem("-a"), Some(NameProblem::Start('-')));
        assert_eq!(problem(".a"), Some(NameProblem::Start('.')));
        for (bad, wrong) in
            [("A", 'A'), ("a:b", ':'), ("a b", ' '), ("a_b", '_'), ("ä", 'ä'), ("a/b", '/'), ("a\n", '\n')]
        {
            assert_eq!(problem(bad), Some(NameProblem::Character(wrong)), "{bad}");
        }
    }

    /// Guards RFC 7143 4.2.7: the three types of names, in lower case, and what is none.
    #[test]
    fn iscsi_names() {
        for good in [
            "iqn.2001-04.com.example",
            "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
        ] {
            assert_eq!(normal_iqn(good).as_deref(), Ok(good));
        }
        assert_eq!(normal_iqn("IQN.2001-04.COM.Example:A").as_deref(), Ok("iqn.2001-04.com.example:a"));
        assert_eq!(problem(""), Some(IqnProblem::Type));
        assert_eq!(problem("disk"), Some(IqnProblem::Type));
        assert_eq!(problem("iqn."), Some(IqnProblem::Date));
        assert_eq!(problem("iqn.2001-13.com.example"), Some(IqnProblem::Date));
        assert_eq!(problem("iqn.2001-4.com.example"), Some(IqnProblem::Date));
        assert_eq!(problem("iqn.2001-04."), Some(IqnProblem::Domain));
        assert_eq!(problem("iqn.2001-04.:a"), Some(IqnProblem::Domain));
        assert_eq!(problem("iqn.2001-04.com..example:a"), Some(IqnProblem::Domain));
        assert_eq!(problem("iqn.2001-04.com.example:a b"), Some(IqnProblem::Character(' ')));
        assert_eq!(problem("iqn.2001-04.com.example:ä"), Some(IqnProblem::Character('ä')));
        assert_eq!(problem("eui.02004567"), Some(IqnProblem::Eui));
        assert_eq!(problem("naa.5200"), Some(IqnProblem::Naa));
        assert_eq!(
            problem(&format!("iqn.2001-04.com.example:{}", "x".repeat(223))),
            Some(IqnProblem::TooLong)
        );
    }

    /// Guards access entries: two spellings of one entry are one entry.
    #[test]
    fn access_entries() {
        let acl = |initiator: &str, from: Option<&str>| Acl {
            initiator: initiator.to_owned(),
            from: from.map(|from| from.parse().expect("a range")),
        };
        let kept = normal_acl(&acl("IQN.1994-05.com.redhat:*", Some("10.1.2.3/8"))).expect("valid");
        assert_eq!(kept, acl("iqn.1994-05.com.redhat:*", Some("10.0.0.0/8")));
        assert!(normal_acl(&acl("", None)).is_err());
        assert!(normal_acl(&acl("a b", None)).is_err());
        assert!(normal_acl(&acl(&"*".repeat(224), None)).is_err());
    }
}
