//! Operational keys (RFC 7143 section 13) as a table, and their negotiation (RFC 7143 6.2).
//!
//! The target only answers, it never offers: what the initiator leaves out keeps its default, which
//! is what the standard lets a responder do. Declarative keys get no answer.

use lunette_proto::iscsi::text;
use lunette_proto::limits::{ISCSI_LOGIN_SEGMENT_BYTES, ISCSI_RECV_SEGMENT_BYTES};

use bytes::BytesMut;

/// What the initiator may declare as MaxRecvDataSegmentLength, and other 24-bit lengths.
const LENGTH_MIN: u32 = 512;
const LENGTH_MAX: u32 = (1 << 24) - 1;
/// R2Ts of one command that may be outstanding: more than a few only cost bookkeeping.
const OUTSTANDING_R2T: u32 = 8;
/// Values are at most this long unless a key says otherwise (RFC 7143 6.1).
const VALUE_BYTES_MAX: usize = 255;

/// Keys whose result the session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Slot {
    HeaderDigest,
    DataDigest,
    MaxConnections,
    InitialR2t,
    ImmediateData,
    InitiatorSegment,
    MaxBurst,
    FirstBurst,
    Time2Wait,
    Time2Retain,
    OutstandingR2t,
    PduInOrder,
    SequenceInOrder,
    RecoveryLevel,
    /// Results that nobody reads.
    Unused,
}

const SLOTS: usize = Slot::Unused as usize + 1;

/// How two offers become a result (RFC 7143 6.2.1, 6.2.2).
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The first of the initiator's list that is here; the result is its index.
    List(&'static [&'static str]),
    /// Yes if both say yes.
    And,
    /// Yes if one says yes; ours is given.
    Or(bool),
    /// The smaller; ours, and the range.
    Min(u32, u32, u32),
    /// The larger; ours, and the range.
    Max(u32, u32, u32),
    /// A number that the initiator declares, and its range.
    DeclareNumber(u32, u32),
    /// A text that the initiator declares.
    DeclareText,
    /// Obsolete markers (RFC 7143 13.25): No.
    Marker,
    /// An answer that never varies.
    Answer(&'static str),
}

/// Where a key may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// LoginOperationalNegotiation only (leading only, or per connection).
    Operational,
    /// Login and full feature phase.
    Any,
}

struct Row {
    key: &'static str,
    slot: Slot,
    default: u32,
    rule: Rule,
    phase: Phase,
    /// Meaningless in a discovery session: answered Irrelevant.
    normal_only: bool,
}

const fn row(key: &'static str, slot: Slot, default: u32, rule: Rule, normal_only: bool) -> Row {
    Row { key, slot, default, rule, phase: Phase::Operational, normal_only }
}

const DIGESTS: &[&str] = &["None", "CRC32C"];
const TASK_REPORTING: &[&str] = &["RFC3720"];

/// RFC 7143 section 13. Numbers where the key is a boolean: 0 is No, 1 is Yes.
const KEYS: &[Row] = &[
    row("HeaderDigest", Slot::HeaderDigest, 0, Rule::List(DIGESTS), false),
    row("DataDigest", Slot::DataDigest, 0, Rule::List(DIGESTS), false),
    row("MaxConnections", Slot::MaxConnections, 1, Rule::Min(1, 1, 65535), true),
    row("InitialR2T", Slot::InitialR2t, 1, Rule::Or(false), true),
    row("ImmediateData", Slot::ImmediateData, 1, Rule::And, true),
    Row {
        key: "MaxRecvDataSegmentLength",
        slot: Slot::InitiatorSegment,
        default: ISCSI_LOGIN_SEGMENT_BYTES,
        rule: Rule::DeclareNumber(LENGTH_MIN, LENGTH_MAX),
        phase: Phase::Any,
        normal_only: false,
    },
    row("MaxBurstLength", Slot::MaxBurst, 262_144, Rule::Min(LENGTH_MAX, LENGTH_MIN, LENGTH_MAX), true),
    row("FirstBurstLength", Slot::FirstBurst, 65_536, Rule::Min(262_144, LENGTH_MIN, LENGTH_MAX), true),
    row("DefaultTime2Wait", Slot::Time2Wait, 2, Rule::Max(0, 0, 3600), false),
    // Nothing of a session outlives its connection at ErrorRecoveryLevel 0.
    row("DefaultTime2Retain", Slot::Time2Retain, 20, Rule::Min(0, 0, 3600), false),
    row("MaxOutstandingR2T", Slot::OutstandingR2t, 1, Rule::Min(OUTSTANDING_R2T, 1, 65535), true),
    row("DataPDUInOrder", Slot::PduInOrder, 1, Rule::Or(true), true),
    row("DataSequenceInOrder", Slot::SequenceInOrder, 1, Rule::Or(true), true),
    row("ErrorRecoveryLevel", Slot::RecoveryLevel, 0, Rule::Min(0, 0, 2), false),
    row("TaskReporting", Slot::Unused, 0, Rule::List(TASK_REPORTING), true),
    row("iSCSIProtocolLevel", Slot::Unused, 1, Rule::Min(1, 0, 31), true),
    row("IFMarker", Slot::Unused, 0, Rule::Marker, false),
    row("OFMarker", Slot::Unused, 0, Rule::Marker, false),
    row("IFMarkInt", Slot::Unused, 0, Rule::Answer("Reject"), false),
    row("OFMarkInt", Slot::Unused, 0, Rule::Answer("Reject"), false),
    Row {
        key: "InitiatorAlias",
        slot: Slot::Unused,
        default: 0,
        rule: Rule::DeclareText,
        phase: Phase::Any,
        normal_only: false,
    },
];

/// Why a login or a text exchange must fail: the initiator broke the rules of negotiation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// A key came twice (RFC 7143 6.3).
    #[error("a key was negotiated twice")]
    Twice,
    /// A value that no answer is defined for.
    #[error("a declared value is invalid")]
    Value,
}

/// Results of the negotiation, defaults until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    values: [u32; SLOTS],
    seen: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let mut values = [0; SLOTS];
        for row in KEYS {
            values[row.slot as usize] = row.default;
        }
        Self { values, seen: 0 }
    }
}

impl Settings {
    /// Headers carry digests once login is over.
    #[must_use]
    pub fn header_digest(&self) -> bool {
        self.get(Slot::HeaderDigest) != 0
    }

    /// Data segments carry digests once login is over.
    #[must_use]
    pub fn data_digest(&self) -> bool {
        self.get(Slot::DataDigest) != 0
    }

    /// No unsolicited Data-Out.
    #[must_use]
    pub fn initial_r2t(&self) -> bool {
        self.get(Slot::InitialR2t) != 0
    }

    /// Commands may carry data.
    #[must_use]
    pub fn immediate_data(&self) -> bool {
        self.get(Slot::ImmediateData) != 0
    }

    /// Longest data segment that the initiator takes.
    #[must_use]
    pub fn initiator_segment_bytes(&self) -> u32 {
        self.get(Slot::InitiatorSegment)
    }

    /// Longest sequence of Data-In, or of Data-Out of one R2T.
    #[must_use]
    pub fn max_burst_bytes(&self) -> u32 {
        self.get(Slot::MaxBurst)
    }

    /// Most unsolicited data of a command, never beyond a burst (RFC 7143 13.14).
    #[must_use]
    pub fn first_burst_bytes(&self) -> u32 {
        self.get(Slot::FirstBurst).min(self.max_burst_bytes())
    }

    /// R2Ts of a command that may be outstanding.
    #[must_use]
    pub fn outstanding_r2t_max(&self) -> u32 {
        self.get(Slot::OutstandingR2t)
    }

    /// Seconds that an initiator waits before it connects again.
    #[must_use]
    pub fn time2wait(&self) -> u16 {
        u16::try_from(self.get(Slot::Time2Wait)).unwrap_or(u16::MAX)
    }

    /// Of the keys that belong to the session and not to a connection, those that this login left out
    /// keep the value that they have in `session` (RFC 7143 6.3.4, section 13).
    #[must_use]
    pub fn within(mut self, session: &Self) -> Self {
        for (index, row) in KEYS.iter().enumerate() {
            let is_connections =
                matches!(row.slot, Slot::HeaderDigest | Slot::DataDigest | Slot::InitiatorSegment);
            if !is_connections && self.seen & 1 << index == 0 {
                self.values[row.slot as usize] = session.get(row.slot);
            }
        }
        self
    }

    fn get(&self, slot: Slot) -> u32 {
        self.values[slot as usize]
    }

    /// Takes one key in the operational stage and appends the answer, if it gets one.
    pub fn negotiate(
        &mut self,
        key: &str,
        value: &str,
        discovery: bool,
        out: &mut BytesMut,
    ) -> Result<(), NegotiationError> {
        let Some((index, row)) = KEYS.iter().enumerate().find(|(_, row)| row.key == key) else {
            text::push(out, key, "NotUnderstood");
            return Ok(());
        };
        // The table has fewer rows than the mask has bits.
        let bit = 1u64 << index;
        if self.seen & bit != 0 {
            return Err(NegotiationError::Twice);
        }
        self.seen |= bit;
        if discovery && row.normal_only {
            text::push(out, key, "Irrelevant");
            return Ok(());
        }
        self.apply(row, value, out)
    }

    /// Takes one key in the full feature phase.
    pub fn renegotiate(
        &mut self,
        key: &str,
        value: &str,
        out: &mut BytesMut,
    ) -> Result<(), NegotiationError> {
        match KEYS.iter().find(|row| row.key == key) {
            None => text::push(out, key, "NotUnderstood"),
            Some(row) if row.phase == Phase::Any => return self.apply(row, value, out),
            Some(_) => text::push(out, key, "Reject"),
        }
        Ok(())
    }

    /// Whether a key belongs to the operational stage alone.
    #[must_use]
    pub fn is_operational(key: &str) -> bool {
        KEYS.iter().any(|row| row.key == key && row.phase == Phase::Operational)
    }

    fn apply(&mut self, row: &Row, value: &str, out: &mut BytesMut) -> Result<(), NegotiationError> {
        let result = if value.len() > VALUE_BYTES_MAX { None } else { decide(row.rule, value) };
        match (row.rule, result) {
            (Rule::DeclareText, Some(_)) => {}
            (Rule::DeclareNumber(..), Some((number, _))) => self.values[row.slot as usize] = number,
            // A declaration has no answer, so a wrong one cannot be rejected key by key.
            (Rule::DeclareText | Rule::DeclareNumber(..), None) => return Err(NegotiationError::Value),
            (_, None) => text::push(out, row.key, "Reject"),
            (_, Some((number, answer))) => {
                self.values[row.slot as usize] = number;
                text::push(out, row.key, &answer);
            }
        }
        Ok(())
    }
}

/// The result and the answer; `None`: Reject.
fn decide(rule: Rule, value: &str) -> Option<(u32, String)> {
    let yes_or_no = |yes: bool| (u32::from(yes), if yes { "Yes" } else { "No" }.to_owned());
    let number = |number: u32| (number, number.to_string());
    match rule {
        Rule::List(known) => value.split(',').find_map(|offer| {
            let index = known.iter().position(|name| *name == offer)?;
            Some((u32::try_from(index).ok()?, offer.to_owned()))
        }),
        Rule::And => boolean(value).map(yes_or_no),
        Rule::Or(ours) => boolean(value).map(|theirs| yes_or_no(theirs || ours)),
        Rule::Min(ours, low, high) => in_range(value, low, high).map(|theirs| number(theirs.min(ours))),
        Rule::Max(ours, low, high) => in_range(value, low, high).map(|theirs| number(theirs.max(ours))),
        Rule::DeclareNumber(low, high) => in_range(value, low, high).map(number),
        Rule::DeclareText => Some((0, String::new())),
        Rule::Marker => boolean(value).map(|_| yes_or_no(false)),
        Rule::Answer(answer) => Some((0, answer.to_owned())),
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn in_range(value: &str, low: u32, high: u32) -> Option<u32> {
    numeric(value).filter(|number| (low..=high).contains(number))
}

/// A decimal or hexadecimal constant (RFC 7143 6.1).
fn numeric(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (value, 10),
    };
    // `from_str_radix` takes a sign, constants do not.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// What the target declares with the first operational answer.
pub(super) fn declare(out: &mut BytesMut) {
    text::push(out, "MaxRecvDataSegmentLength", &ISCSI_RECV_SEGMENT_BYTES.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(key: &str, value: &str) -> (Settings, String) {
        let mut settings = Settings::default();
        let mut out = BytesMut::new();
        settings.negotiate(key, value, false, &mut out).unwrap();
        (settings, String::from_utf8(out.to_vec()).unwrap().replace('\0', ""))
    }

    /// Guards each rule with the offers of open-iscsi and libiscsi, and the ends of each range.
    #[test]
    fn rules() {
        for (key, offer, expected) in [
            ("HeaderDigest", "None,CRC32C", "None"),
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("DataDigest", "CRC64,CRC32C", "CRC32C"),
            ("DataDigest", "CRC64", "Reject"),
            ("HeaderDigest", "", "Reject"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxBurstLength", "16776192", "16776192"),
            ("MaxBurstLength", "16777215", "16777215"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("MaxBurstLength", "512", "512"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "0x40000", "262144"),
            ("MaxBurstLength", "+512", "Reject"),
            ("MaxBurstLength", "", "Reject"),
            ("MaxBurstLength", "99999999999", "Reject"),
            ("FirstBurstLength", "1048576", "262144"),
            ("DefaultTime2Wait", "0", "0"),
            ("DefaultTime2Wait", "5", "5"),
            ("DefaultTime2Retain", "20", "0"),
            ("DefaultTime2Retain", "3601", "Reject"),
            ("MaxOutstandingR2T", "1", "1"),
            ("MaxOutstandingR2T", "65535", "8"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("IFMarker", "No", "No"),
            ("OFMarker", "Yes", "No"),
            ("IFMarkInt", "1~65535", "Reject"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("iSCSIProtocolLevel", "2", "1"),
            ("RDMAExtensions", "Yes", "NotUnderstood"),
            ("X-com.example", "1", "NotUnderstood"),
        ] {
            assert_eq!(answer(key, offer).1, format!("{key}={expected}"), "{key}={offer}");
        }
        assert_eq!(answer("MaxRecvDataSegmentLength", "262144").1, "");
        assert_eq!(answer("MaxRecvDataSegmentLength", "262144").0.initiator_segment_bytes(), 262_144);
        assert_eq!(answer("InitiatorAlias", "host").1, "");
    }

    /// Guards the defaults of RFC 7143 section 13, which hold when a key is not sent.
    #[test]
    fn defaults() {
        let settings = Settings::default();
        assert!(!settings.header_digest() && !settings.data_digest());
        assert!(settings.initial_r2t() && settings.immediate_data());
        assert_eq!(settings.initiator_segment_bytes(), 8192);
        assert_eq!(settings.max_burst_bytes(), 262_144);
        assert_eq!(settings.first_burst_bytes(), 65_536);
        assert_eq!(settings.outstanding_r2t_max(), 1);
        assert_eq!(settings.time2wait(), 2);
    }

    /// Guards FirstBurstLength against exceeding MaxBurstLength, in whichever order they come.
    #[test]
    fn first_burst_is_within_burst() {
        for keys in [
            ["FirstBurstLength=65536", "MaxBurstLength=4096"],
            ["MaxBurstLength=4096", "FirstBurstLength=65536"],
        ] {
            let mut settings = Settings::default();
            for pair in keys {
                let (key, value) = pair.split_once('=').unwrap();
                settings.negotiate(key, value, false, &mut BytesMut::new()).unwrap();
            }
            assert_eq!(settings.first_burst_bytes(), 4096);
        }
    }

    /// Guards against a second offer of the same key, and against declared values that cannot be rejected.
    #[test]
    fn failures() {
        let mut settings = Settings::default();
        let mut out = BytesMut::new();
        settings.negotiate("InitialR2T", "No", false, &mut out).unwrap();
        assert_eq!(settings.negotiate("InitialR2T", "No", false, &mut out), Err(NegotiationError::Twice));
        for value in ["0", "511", "16777216", "many"] {
            let result = Settings::default().negotiate("MaxRecvDataSegmentLength", value, false, &mut out);
            assert_eq!(result, Err(NegotiationError::Value));
        }
        let long = "a".repeat(256);
        assert_eq!(
            Settings::default().negotiate("InitiatorAlias", &long, false, &mut out),
            Err(NegotiationError::Value)
        );
    }

    /// Guards discovery sessions: keys that only a normal session has are Irrelevant.
    #[test]
    fn discovery() {
        let mut out = BytesMut::new();
        let mut settings = Settings::default();
        settings.negotiate("MaxBurstLength", "512", true, &mut out).unwrap();
        settings.negotiate("HeaderDigest", "CRC32C", true, &mut out).unwrap();
        assert_eq!(&out[..], b"MaxBurstLength=Irrelevant\0HeaderDigest=CRC32C\0");
        assert_eq!(settings.max_burst_bytes(), 262_144);
    }

    /// Guards the full feature phase: only what may change there changes, as often as wanted.
    #[test]
    fn full_feature() {
        let mut out = BytesMut::new();
        let mut settings = Settings::default();
        settings.renegotiate("MaxRecvDataSegmentLength", "512", &mut out).unwrap();
        settings.renegotiate("MaxRecvDataSegmentLength", "1024", &mut out).unwrap();
        assert_eq!(settings.initiator_segment_bytes(), 1024);
        settings.renegotiate("HeaderDigest", "CRC32C", &mut out).unwrap();
        settings.renegotiate("Foo", "Bar", &mut out).unwrap();
        assert_eq!(&out[..], b"HeaderDigest=Reject\0Foo=NotUnderstood\0");
        assert!(!settings.header_digest());
    }

    /// Guards a connection that takes over a session: the session's keys stay, but for those that were
    /// answered anew; its own begin at their defaults.
    #[test]
    fn within_a_session() {
        let negotiated = |keys: &[(&str, &str)]| {
            let mut settings = Settings::default();
            for (key, value) in keys {
                settings.negotiate(key, value, false, &mut BytesMut::new()).unwrap();
            }
            settings
        };
        let session = negotiated(&[
            ("InitialR2T", "No"),
            ("MaxBurstLength", "4096"),
            ("HeaderDigest", "CRC32C"),
            ("MaxRecvDataSegmentLength", "65536"),
        ]);
        let resumed = negotiated(&[("MaxBurstLength", "8192"), ("DataDigest", "CRC32C")]).within(&session);
        assert!(!resumed.initial_r2t());
        assert_eq!(resumed.max_burst_bytes(), 8192);
        assert!(resumed.data_digest() && !resumed.header_digest());
        assert_eq!(resumed.initiator_segment_bytes(), 8192);
    }

    /// Guards the mask of seen keys against a longer table.
    #[test]
    fn table_fits_mask() {
        assert!(KEYS.len() <= 64);
    }
}
