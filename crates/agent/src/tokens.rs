//! The impersonator: the token of `clusternet-app-deployer`, asked for by TokenRequest and renewed at two
//! thirds of its life, and what this account may impersonate. Every person's request needs both. While one of
//! the agent's accounts has a right that would undo what bounds the hub ([`crate::permissions`]), there is no
//! token to be had here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::identity::{Identity, InvalidIdentity};
use api::names::{IMPERSONATOR_ACCOUNT, SYSTEM_NAMESPACE};
use api::secret::Secret;
use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use runtime::backoff::Backoff;
use runtime::readiness::Readiness;
use runtime::stop::Stop;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::account::{Account, AskError};
use crate::limits::{PROBE_EVERY, PROBE_RETRY, TOKEN_LIFE, TOKEN_RETRY_FIRST, TOKEN_RETRY_MAX};
use crate::permissions::{Mode, Permissions, Standing, Verdict};
use crate::trouble::{Code, Log, Trouble};

/// The readiness check of this module.
pub const CHECK: &str = "impersonation";

/// The account that may impersonate, and what it may.
pub struct Impersonator {
    agent: Account,
    token: ArcSwapOption<Secret>,
    verdict: ArcSwap<Verdict>,
    permissions: Permissions,
    /// The token is to be renewed now.
    renew: Notify,
    /// There is a new token.
    renewed: Notify,
}

/// Why nobody can be impersonated now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoImpersonation {
    /// No token yet, or no longer.
    #[error("the agent has no token of its account {IMPERSONATOR_ACCOUNT} yet; it is asking for one")]
    NoToken,
    /// Serving would be dangerous.
    #[error("the agent serves nobody: {0}")]
    Dangerous(String),
    /// The child does not say which groups may be impersonated.
    #[error("the child's kube-apiserver does not say whom the agent may impersonate: {0}")]
    Unknown(String),
    /// What remained is no identity.
    #[error(transparent)]
    Invalid(#[from] InvalidIdentity),
}

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: Secret,
    expiration_timestamp: Timestamp,
}

impl Impersonator {
    /// Asks for nothing before [`Impersonator::run`]; `agent` is the account that may ask for the token.
    pub fn new(agent: Account) -> Self {
        Self {
            agent,
            token: ArcSwapOption::empty(),
            verdict: ArcSwap::from_pointee(Verdict::Unknown("not probed yet".to_owned())),
            permissions: Permissions::new(),
            renew: Notify::new(),
            renewed: Notify::new(),
        }
    }

    /// The token and the person as the child lets us be that person: groups that may not be impersonated
    /// are left out, for one of them would make kube-apiserver refuse the whole request.
    ///
    /// # Errors
    /// Nobody can be impersonated now.
    pub async fn admit(&self, who: &Identity) -> Result<(Arc<Secret>, Identity), NoImpersonation> {
        let verdict = self.verdict.load_full();
        let mode = match verdict.as_ref() {
            Verdict::May(standing) => standing.mode,
            Verdict::Dangerous(why) => return Err(NoImpersonation::Dangerous(why.clone())),
            // Whatever this account may not, the child refuses, and says so itself.
            Verdict::MayNot(_) => Mode::Legacy,
            Verdict::Unknown(why) => return Err(NoImpersonation::Unknown(why.clone())),
        };
        let token = self.token.load_full().ok_or(NoImpersonation::NoToken)?;
        let account = self.agent.with_token(Secret::clone(&token));
        let groups = self
            .permissions
            .allowed_groups(&account, mode, who.groups())
            .await
            .map_err(NoImpersonation::Unknown)?;
        let who = if groups.len() == who.groups().len() { who.clone() } else { who.with_groups(groups)? };
        Ok((token, who))
    }

    /// What is wrong with impersonation, for the report; empty if nothing is.
    pub fn error(&self) -> String {
        self.verdict.load().error()
    }

    /// By which rules people are served and what the child's owner should look at; `None` while nobody is.
    pub fn standing(&self) -> Option<Standing> {
        match &**self.verdict.load() {
            Verdict::May(standing) => Some(standing.clone()),
            Verdict::MayNot(_) | Verdict::Dangerous(_) | Verdict::Unknown(_) => None,
        }
    }

    /// The child refused the token: it is to be replaced now, not at two thirds of its life.
    pub fn token_was_refused(&self) {
        self.renew.notify_one();
    }

    /// Keeps token and verdict fresh until `stop`.
    pub async fn run(&self, readiness: Readiness, stop: Stop) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.renew_for_ever() => {}
            () = self.probe_for_ever(&readiness) => {}
        }
    }

    async fn renew_for_ever(&self) {
        let mut backoff = Backoff::new(TOKEN_RETRY_FIRST, TOKEN_RETRY_MAX);
        let mut log = Log::default();
        loop {
            let delay = match self.renew_once().await {
                Ok(life) => {
                    backoff.reset();
                    log.clear();
                    life * 2 / 3
                }
                Err(error) => {
                    log.report(&Trouble::new(
                        Code::Child,
                        format!("no token for {IMPERSONATOR_ACCOUNT}: {error}"),
                    ));
                    backoff.delay()
                }
            };
            tokio::select! {
                () = sleep(delay) => {}
                // At most once in the shortest retry: a hub could provoke refusals without end.
                () = async { sleep(TOKEN_RETRY_FIRST).await; self.renew.notified().await } => {}
            }
        }
    }

    async fn renew_once(&self) -> Result<Duration, AskError> {
        let path =
            format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts/{IMPERSONATOR_ACCOUNT}/token");
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": [], "expirationSeconds": TOKEN_LIFE.as_secs() },
        });
        let answer: TokenRequest = self.agent.post(&path, &body).await?;
        self.token.store(Some(Arc::new(answer.status.token)));
        self.renewed.notify_one();
        let life = answer.status.expiration_timestamp.duration_since(Timestamp::now());
        // A child whose clock is behind ours gives tokens that seem to be over. Ours may be the wrong one.
        Ok(Duration::try_from(life).unwrap_or(TOKEN_LIFE).clamp(Duration::from_secs(60), TOKEN_LIFE))
    }

    async fn probe_for_ever(&self, readiness: &Readiness) {
        let mut log = Log::default();
        loop {
            let verdict = match self.token.load_full() {
                Some(token) => {
                    Permissions::probe(&self.agent.with_token(Secret::clone(&token)), &self.agent).await
                }
                None => Verdict::Unknown("no token yet".to_owned()),
            };
            // A question without an answer changes nothing that is known.
            let keep =
                matches!(verdict, Verdict::Unknown(_)) && matches!(**self.verdict.load(), Verdict::May(_));
            if !keep {
                let state = verdict.error();
                readiness.set(CHECK, if state.is_empty() { Ok(()) } else { Err(state.clone()) });
                if state.is_empty() {
                    log.clear();
                } else if self.token.load().is_some() {
                    log.report(&Trouble::new(Code::Impersonation, state));
                }
                if **self.verdict.load() != verdict {
                    tell(&verdict);
                }
                self.verdict.store(Arc::new(verdict));
            }
            let settled = matches!(**self.verdict.load(), Verdict::May(_));
            tokio::select! {
                () = sleep(if settled { PROBE_EVERY } else { PROBE_RETRY }) => {}
                () = self.renewed.notified() => {}
            }
        }
    }
}

/// Says once by which rules people are served.
fn tell(verdict: &Verdict) {
    let Verdict::May(standing) = verdict else { return };
    let users = if standing.any_user { "any" } else { "those that the child's owner lists" };
    tracing::info!(mode = %standing.mode, users, "people can be impersonated");
    for warning in &standing.warnings {
        tracing::warn!(warning, "look at the rights of the agent's accounts");
    }
}

impl fmt::Debug for Impersonator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Impersonator").field("verdict", &self.verdict.load()).finish_non_exhaustive()
    }
}
