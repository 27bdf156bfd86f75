//! Text that is mostly well formed: bytes from 0x80 on stand for words of the protocol, so that an input says much in
//! little and a mutation changes meaning, not spelling.

/// What byte 0x80 + n stands for; those beyond the table, and 0xff before another byte, mean bytes as they are.
const PHRASES: &[&str] = &[
    "InitiatorName=iqn.2026-11.org.example:host\0",
    "TargetName=iqn.2026-11.io.lunette:disk\0",
    "TargetName=iqn.2026-11.io.lunette:other\0",
    "SessionType=Normal\0",
    "SessionType=Discovery\0",
    "AuthMethod=None\0",
    "AuthMethod=CHAP\0",
    "AuthMethod=CHAP,None\0",
    "CHAP_A=7,6,8,5\0",
    "CHAP_A=5\0",
    "SendTargets=All\0",
    "SendTargets=",
    "HeaderDigest=",
    "DataDigest=",
    "MaxConnections=",
    "InitialR2T=",
    "ImmediateData=",
    "MaxRecvDataSegmentLength=",
    "MaxBurstLength=",
    "FirstBurstLength=",
    "DefaultTime2Wait=",
    "DefaultTime2Retain=",
    "MaxOutstandingR2T=",
    "DataPDUInOrder=",
    "DataSequenceInOrder=",
    "ErrorRecoveryLevel=",
    "TaskReporting=",
    "iSCSIProtocolLevel=",
    "IFMarker=",
    "OFMarker=",
    "IFMarkInt=",
    "OFMarkInt=",
    "InitiatorAlias=",
    "InitiatorName=",
    "TargetName=",
    "SessionType=",
    "AuthMethod=",
    "CHAP_A=",
    "CHAP_N=",
    "CHAP_R=",
    "CHAP_I=",
    "CHAP_C=",
    "TargetAddress=",
    "TargetAlias=",
    "TargetPortalGroupTag=",
    "RDMAExtensions=",
    "X-com.example.key=",
    "Yes\0",
    "No\0",
    "None\0",
    "CRC32C\0",
    "CRC32C,None\0",
    "None,CRC32C\0",
    "RFC3720\0",
    "0\0",
    "1\0",
    "2\0",
    "8\0",
    "512\0",
    "511\0",
    "4096\0",
    "8192\0",
    "65536\0",
    "262144\0",
    "16777215\0",
    "16777216\0",
    "4294967296\0",
    "0x",
    "0b",
    "Reject\0",
    "NotUnderstood\0",
    "Irrelevant\0",
    "iqn.2026-11.io.lunette:disk\0",
    "iqn.2026-11.io.lunette:other\0",
    "iqn.2026-11.org.example:host\0",
    "host\0",
    "target\0",
    "\0",
];

/// Where words begin, and the byte that says that the next one is meant as it is.
const FIRST: u8 = 0x80;
const LITERAL: u8 = 0xff;

/// The text that `data` stands for, at most `max` bytes of it.
pub(crate) fn expand(data: &[u8], max: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len() * 2);
    let mut bytes = data.iter();
    while let Some(byte) = bytes.next() {
        match byte.checked_sub(FIRST).and_then(|index| PHRASES.get(usize::from(index))) {
            Some(phrase) => text.extend_from_slice(phrase.as_bytes()),
            None if *byte == LITERAL => text.extend(bytes.next()),
            None => text.push(*byte),
        }
    }
    text.truncate(max);
    text
}
