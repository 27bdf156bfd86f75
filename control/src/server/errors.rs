//! Errors as gRPC has them: a code, one sentence, and details that a program can read.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::raft::{ConsensusError, ProposeError};
use crate::state::{Category, Rejection};

/// The domain of every reason.
const DOMAIN: &str = "lunette.io";

/// The reason of a member that does not lead, and the detail that says who does, if that is known.
pub(crate) const NOT_LEADER: &str = "NOT_LEADER";
pub(crate) const LEADER: &str = "leader";

/// The detail that says which path of a node holds another disk than the one that was there, or none.
pub(crate) const DISK_PATH: &str = "path";

/// A status with a reason.
pub(super) fn status(code: Code, reason: &str, sentence: impl Into<String>) -> Status {
    with_metadata(code, reason, sentence, HashMap::new())
}

fn with_metadata(
    code: Code,
    reason: &str,
    sentence: impl Into<String>,
    metadata: HashMap<String, String>,
) -> Status {
    Status::with_error_details(code, sentence, ErrorDetails::with_error_info(reason, DOMAIN, metadata))
}

/// A command that the state refuses.
pub(super) fn rejected(rejection: &Rejection) -> Status {
    let (category, reason, field) = rejection.classify();
    let sentence = rejection.to_string();
    let code = match category {
        Category::Invalid => Code::InvalidArgument,
        Category::NotFound => Code::NotFound,
        Category::Exists => Code::AlreadyExists,
        Category::Precondition => Code::FailedPrecondition,
        Category::Exhausted => Code::ResourceExhausted,
        Category::Conflict => Code::Aborted,
    };
    let metadata = match rejection {
        Rejection::DiskSwapped { path, .. } => HashMap::from([(DISK_PATH.to_owned(), path.clone())]),
        _ => HashMap::new(),
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let (Category::Invalid, Some(field)) = (category, field) {
        details.add_bad_request_violation(field, sentence.clone());
    }
    Status::with_error_details(code, sentence, details)
}

/// Consensus that does not answer.
pub(super) fn unavailable(error: &ConsensusError) -> Status {
    let (reason, leader) = match error {
        ConsensusError::NotLeader { leader } => (NOT_LEADER, leader.as_deref()),
        ConsensusError::NoQuorum => ("NO_QUORUM", None),
        ConsensusError::Stopped { .. } => ("STOPPED", None),
    };
    let metadata = leader.map(|leader| (LEADER.to_owned(), leader.to_owned())).into_iter().collect();
    with_metadata(Code::Unavailable, reason, error.to_string(), metadata)
}

/// A proposal that was not carried out.
pub(super) fn proposal(error: &ProposeError) -> Status {
    match error {
        ProposeError::Rejected(rejection) => rejected(rejection),
        ProposeError::Consensus(error) => unavailable(error),
    }
}

/// A field of the request that is wrong in itself.
pub(super) fn invalid(field: &str, reason: &str, sentence: impl Into<String>) -> Status {
    let sentence = sentence.into();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, sentence.clone());
    Status::with_error_details(Code::InvalidArgument, sentence, details)
}

/// Something that cannot go wrong did; the log has the rest.
pub(super) fn internal(what: &str, error: &dyn std::error::Error) -> Status {
    tracing::error!(%error, "{what}");
    status(Code::Internal, "INTERNAL", format!("{what}; the log of the control plane says more"))
}

/// The member is stopping.
pub(super) fn stopping() -> Status {
    status(Code::Unavailable, "STOPPED", "this member of the control plane is stopping")
}
