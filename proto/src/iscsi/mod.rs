//! iSCSI PDUs and text keys (RFC 7143).
