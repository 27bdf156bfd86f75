//! The gRPC API, generated from `proto/api` when the crate is built: messages, clients, servers.

use std::fmt;

/// For administrators and their tools: `lunette.admin.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code; its documentation is the .proto file"
)]
pub mod admin {
    tonic::include_proto!("lunette.admin.v1");
}

/// For the members of a cluster: `lunette.cluster.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::unwrap_used,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code; its documentation is the .proto file"
)]
pub mod cluster {
    tonic::include_proto!("lunette.cluster.v1");
}

/// The descriptors of all of it, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.bin"));

/// Prints the names and no secret, so that a request that reaches a log gives nothing away.
impl fmt::Debug for admin::SetChapRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetChapRequest")
            .field("iqn", &self.iqn)
            .field("user", &self.user)
            .field("mutual_user", &self.mutual_user)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// As for a target's.
impl fmt::Debug for admin::SetDiscoveryChapRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetDiscoveryChapRequest")
            .field("user", &self.user)
            .field("mutual_user", &self.mutual_user)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// The token is as good as the cluster's key.
impl fmt::Debug for admin::CreateJoinTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("expires_unix_ms", &self.expires_unix_ms)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::admin::{CreateJoinTokenResponse, SetChapRequest, SetDiscoveryChapRequest};

    /// Guards secrets against logs: printing a request that bears one prints none of it.
    #[test]
    fn debug_hides_secrets() {
        let request = SetChapRequest {
            secret: "hunter2hunter2".into(),
            mutual_secret: "correct-horse".into(),
            ..SetChapRequest::default()
        };
        let discovery = SetDiscoveryChapRequest {
            secret: request.secret.clone(),
            mutual_secret: request.mutual_secret.clone(),
            ..SetDiscoveryChapRequest::default()
        };
        let token = CreateJoinTokenResponse { token: "lunette-join-horse".into(), expires_unix_ms: 1 };
        let printed = format!("{request:?} {request:#?} {discovery:?} {discovery:#?} {token:?}");
        assert!(!printed.contains("hunter2"));
        assert!(!printed.contains("horse"));
    }
}
