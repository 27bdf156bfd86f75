//! What only the leader does, by itself: it begins whenever this member comes to lead, and is given up when it leads no more.

use std::time::Duration;

use tokio::time::sleep;

use super::Context;

/// Before anything is tried again, when consensus did not answer.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

impl Context {
    /// Does `work` anew each time that this member leads, and `after` it when that is over, until the member stops. What an
    /// earlier leader has committed is seen before `work` begins.
    pub(super) async fn while_leading<W>(&self, work: impl Fn() -> W, after: impl Fn())
    where
        W: Future<Output = ()>,
    {
        loop {
            tokio::select! {
                leads = self.leads() => if !leads { return },
                () = self.stop.cancelled() => return,
            }
            let led = async {
                while self.consensus.read_barrier().await.is_err() {
                    sleep(PAUSE).await;
                }
                work().await;
            };
            tokio::select! {
                () = led => {}
                () = self.leadership_lost() => {}
                () = self.stop.cancelled() => return,
            }
            after();
        }
    }

    /// Returns when this member leads; `false`: it never will.
    async fn leads(&self) -> bool {
        self.consensus.leading().wait_for(|leading| *leading).await.is_ok()
    }

    /// Returns when this member does not lead.
    pub(super) async fn leadership_lost(&self) {
        // An error says that consensus has ended, and leads no more either.
        let _ = self.consensus.leading().wait_for(|leading| !leading).await;
    }
}
