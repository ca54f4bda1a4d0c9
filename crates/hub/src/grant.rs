//! What the parent grants a caller on one cluster: the verb, and the roles that become groups in the child. Asked
//! before a request is sent on, and again for as long as it stays open: nobody keeps a shell or a watch that they
//! could not open any more (Argo CD CVE-2023-40025 and CVE-2024-41666; Kubernetes itself never asks again).

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use api::identity::Identity;
use api::names::{ClusterId, Role};

use crate::authz::{Action, Authz};
use crate::gateway::Standing;
use crate::handle::Hub;
use crate::refusal::Refusal;

/// So many times in a row the parent may fail to answer before an open stream is ended: ten minutes of an
/// authorizer that is away do not cut every shell there is, an hour does not leave them open.
const UNANSWERED: u32 = 10;

/// A yes of the parent, with what it covers.
#[derive(Debug, Clone)]
pub struct Grant {
    who: Arc<Identity>,
    cluster: ClusterId,
    verb: &'static str,
    /// The roles held on this cluster.
    pub roles: Vec<Role>,
    /// What the caller showed at the gateway.
    pub standing: Option<Arc<Standing>>,
}

impl Grant {
    /// Asks for the verb and for the roles at once: the roles cost no time of their own.
    ///
    /// # Errors
    /// The parent says no, or does not say.
    pub async fn ask(
        authz: &Authz,
        who: &Arc<Identity>,
        cluster: &ClusterId,
        verb: &'static str,
    ) -> Result<Self, Refusal> {
        let action = Action::Socket { verb, subresource: "proxy", cluster: cluster.clone() };
        let (allowed, roles) = tokio::join!(authz.allowed(who, action), authz.roles(who, cluster));
        if !allowed? {
            return Err(Refusal::ClusterForbidden(cluster.clone(), verb));
        }
        Ok(Self { who: Arc::clone(who), cluster: cluster.clone(), verb, roles: roles?, standing: None })
    }

    /// Resolves when the grant no longer holds: the verb or one of the roles was taken away.
    pub async fn lost(self, hub: Arc<Hub>) {
        let mut unanswered = 0;
        loop {
            let revoked = self.standing.as_deref().and_then(Standing::revoked);
            tokio::select! {
                biased;
                () = async { match revoked { Some(revoked) => revoked.cancelled().await, None => pending().await } } => return,
                () = tokio::time::sleep(jittered(hub.running.limits().recheck)) => {}
            }
            match self.ask_again(&hub).await {
                Ok(now) if self.roles.iter().all(|role| now.roles.contains(role)) => unanswered = 0,
                Ok(_)
                | Err(Refusal::ClusterForbidden(..) | Refusal::Forbidden(_) | Refusal::Unauthenticated(_)) => {
                    return;
                }
                Err(refusal) => {
                    unanswered += 1;
                    tracing::debug!(%refusal, unanswered, "an open stream could not be authorized again");
                    if unanswered >= UNANSWERED {
                        return;
                    }
                }
            }
        }
    }
}

impl Grant {
    async fn ask_again(&self, hub: &Hub) -> Result<Self, Refusal> {
        if let Some(standing) = &self.standing
            && !standing.holds(hub).await?
        {
            return Err(Refusal::Unauthenticated("the token is no longer good"));
        }
        Self::ask(&hub.authz, &self.who, &self.cluster, self.verb).await
    }
}

/// Between three quarters of it and all of it: streams that were opened together are not asked about together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - rand::random::<f64>() / 4.0)
}
