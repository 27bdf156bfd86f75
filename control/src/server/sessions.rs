//! iSCSI sessions: what gateways report, and the order to end one.

use std::time::Duration;

use lunette_proto::ids::GatewayId;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};

use super::Context;
use super::errors::status;
use crate::api::admin::sessions_server::Sessions;
use crate::api::admin::{KickSessionRequest, KickSessionResponse, ListSessionsRequest, ListSessionsResponse};
use crate::api::cluster::SessionReport;
use crate::health::Member;

/// How long a gateway may take to end a session.
const KICK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked whether it has.
const KICK_POLL: Duration = Duration::from_millis(100);

impl Context {
    /// The session of that number, if the gateway reports it; the time tells it from a later one.
    fn session(&self, gateway: GatewayId, tsih: u32) -> Option<SessionReport> {
        self.attachments.read(|registry, now| {
            let mut sessions = registry.sessions(now);
            sessions
                .find(|(id, session)| *id == gateway && session.tsih == tsih)
                .map(|(_, session)| session.clone())
        })
    }
}

#[tonic::async_trait]
impl Sessions for Context {
    async fn list(&self, _: Request<ListSessionsRequest>) -> Result<Response<ListSessionsResponse>, Status> {
        let state = self.state().await?;
        self.refresh_gateways(state.map()).await;
        let sessions = self.look(&state, |view| view.sessions());
        Ok(Response::new(ListSessionsResponse { sessions }))
    }

    async fn kick(
        &self,
        request: Request<KickSessionRequest>,
    ) -> Result<Response<KickSessionResponse>, Status> {
        let id = request.into_inner().id;
        let shown: String = id.chars().take(128).collect();
        let missing = || {
            let sentence = format!("there is no session {shown:?}; `session list` shows those there are");
            status(Code::NotFound, "SESSION_NOT_FOUND", sentence)
        };
        let (name, tsih) = id.rsplit_once('/').ok_or_else(missing)?;
        let tsih: u32 = tsih.parse().map_err(|_| missing())?;
        let state = self.state().await?;
        let gateway = state.map().gateways.values().find(|gateway| gateway.name == name);
        let gateway = gateway.ok_or_else(missing)?.id;
        if !self.attachments.read(|registry, now| registry.is_up(Member::Gateway(gateway), now)) {
            let sentence =
                format!("gateway {name} is not connected to the control plane; try again when it is up");
            return Err(status(Code::Unavailable, "GATEWAY_DOWN", sentence));
        }
        if self.session(gateway, tsih).is_none() {
            self.refresh_gateways(state.map()).await;
        }
        let session = self.session(gateway, tsih).ok_or_else(missing)?;

        let busy = || {
            let sentence = format!("gateway {name} takes no orders at the moment; try again");
            status(Code::Unavailable, "GATEWAY_BUSY", sentence)
        };
        if !self.attachments.kick(gateway, tsih) {
            return Err(busy());
        }
        // The order is carried out when a report has the session no more.
        let deadline = Instant::now() + KICK_TIMEOUT;
        let mut changes = self.attachments.changes();
        loop {
            match self.session(gateway, tsih) {
                Some(same) if same.since_unix_ms == session.since_unix_ms && same.isid == session.isid => {}
                _ => return Ok(Response::new(KickSessionResponse {})),
            }
            if Instant::now() >= deadline {
                let sentence =
                    format!("gateway {name} has not ended session {shown:?} yet; it is ordered to");
                return Err(status(Code::DeadlineExceeded, "KICK_TIMEOUT", sentence));
            }
            self.attachments.ask_report(Member::Gateway(gateway));
            // Whether a report or the pause ends the wait, the loop looks again.
            let _ = timeout_at(Instant::now() + KICK_POLL, changes.changed()).await;
        }
    }
}
