//! Text in the full feature phase: SendTargets (RFC 7143 appendix C) and what may be renegotiated.
//!
//! An answer that is longer than the initiator's data segment is continued: each part but the last
//! has C set and a transfer tag, and an empty request with that tag asks for the next (RFC 7143 6.2).

use bytes::{Bytes, BytesMut};
use lunette_proto::iscsi::initiator::TextRequest;
use lunette_proto::iscsi::target::TextResponse;
use lunette_proto::iscsi::text::{self, Gather};
use lunette_proto::iscsi::{Serial, TAG_NONE};

use super::negotiate::Settings;
use super::{Context, Endpoint};
use crate::exports::Claimant;
use crate::portals;
use crate::scsi::TargetView;

/// The text exchange of a session; there is one at a time.
#[derive(Debug, Default)]
pub(super) struct TextExchange {
    gather: Gather,
    /// What is left of an answer, under which tags.
    rest: Option<Rest>,
    /// The tag under which more of a request is awaited.
    awaiting: Option<(u32, u32)>,
    next_tag: Serial,
}

#[derive(Debug)]
struct Rest {
    task_tag: u32,
    transfer_tag: u32,
    text: Bytes,
}

/// Whom the answers are for.
pub(super) struct Asker<'a> {
    pub(super) context: &'a Context,
    pub(super) endpoint: &'a Endpoint,
    pub(super) claimant: Claimant,
    /// `None`: a discovery session.
    pub(super) view: Option<&'a TargetView>,
}

/// The request breaks the rules; the caller rejects it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl TextExchange {
    /// Takes a request, gives the response.
    pub(super) fn handle(
        &mut self,
        request: &TextRequest,
        data: &Bytes,
        settings: &mut Settings,
        asker: &Asker<'_>,
    ) -> Result<(TextResponse, Bytes), Invalid> {
        if request.continued && request.is_final {
            return Err(Invalid);
        }
        if request.transfer_tag == TAG_NONE {
            // A new exchange ends the one before (RFC 7143 11.10.4).
            *self = Self { next_tag: self.next_tag, ..Self::default() };
        } else if let Some(rest) = self.rest.take() {
            if (rest.task_tag, rest.transfer_tag) != (request.task_tag, request.transfer_tag)
                || !data.is_empty()
            {
                return Err(Invalid);
            }
            return Ok(self.answer(request, rest.text, settings));
        } else if self.awaiting.take() != Some((request.task_tag, request.transfer_tag)) {
            return Err(Invalid);
        }
        let gathered = self.gather.take(data, request.continued).map_err(|_| Invalid)?;
        let Some(gathered) = gathered else {
            let transfer_tag = self.tag();
            self.awaiting = Some((request.task_tag, transfer_tag));
            let task_tag = request.task_tag;
            return Ok((TextResponse { task_tag, transfer_tag, ..TextResponse::default() }, Bytes::new()));
        };
        let mut out = BytesMut::new();
        let mut listed = false;
        for (key, value) in text::parse(&gathered).map_err(|_| Invalid)? {
            if key == "SendTargets" {
                // Twice would be a short request for a long answer, many times over.
                if std::mem::replace(&mut listed, true) {
                    return Err(Invalid);
                }
                send_targets(value, asker, &mut out);
            } else {
                settings.renegotiate(key, value, &mut out).map_err(|_| Invalid)?;
            }
        }
        Ok(self.answer(request, out.freeze(), settings))
    }

    fn answer(
        &mut self,
        request: &TextRequest,
        mut text: Bytes,
        settings: &Settings,
    ) -> (TextResponse, Bytes) {
        let segment = settings.initiator_segment_bytes() as usize;
        let task_tag = request.task_tag;
        if text.len() > segment {
            let part = text.split_to(segment);
            let transfer_tag = self.tag();
            self.rest = Some(Rest { task_tag, transfer_tag, text });
            return (
                TextResponse { continued: true, task_tag, transfer_tag, ..TextResponse::default() },
                part,
            );
        }
        if request.is_final {
            return (
                TextResponse { is_final: true, task_tag, transfer_tag: TAG_NONE, ..TextResponse::default() },
                text,
            );
        }
        // The initiator has more to negotiate and continues under this tag.
        let transfer_tag = self.tag();
        self.awaiting = Some((task_tag, transfer_tag));
        (TextResponse { task_tag, transfer_tag, ..TextResponse::default() }, text)
    }

    fn tag(&mut self) -> u32 {
        let tag = self.next_tag.take();
        if tag.0 == TAG_NONE { self.next_tag.take().0 } else { tag.0 }
    }
}

/// Answers one SendTargets key: All only in a discovery session, a name, or nothing for the
/// session's own target.
fn send_targets(value: &str, asker: &Asker<'_>, out: &mut BytesMut) {
    let own = asker.view.map(|view| view.iqn.as_str());
    let wanted = match (value, own) {
        ("All", _) => None,
        ("", Some(own)) => Some(own),
        ("", None) => {
            text::push(out, "SendTargets", "Reject");
            return;
        }
        (name, _) => Some(name),
    };
    let exports = asker.context.exports.load();
    let addresses = portals::reachable(
        (&asker.context.portals, asker.context.tag),
        exports.other_portals(),
        asker.endpoint,
    );
    for export in exports.discoverable(&asker.claimant) {
        let iqn = &export.view.iqn;
        if wanted.is_some_and(|wanted| !wanted.eq_ignore_ascii_case(iqn)) {
            continue;
        }
        text::push(out, "TargetName", iqn);
        for (address, tag) in &addresses {
            // Without an access list nobody is admitted elsewhere than over loopback.
            if export.has_acl() || export.is_open_at(address.ip()) {
                text::push(out, "TargetAddress", &portals::target_address(*address, *tag));
            }
        }
    }
}
