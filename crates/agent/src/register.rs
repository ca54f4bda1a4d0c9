//! How this cluster asks to be let in: the mounted registration Secret, and one question to the parent,
//! which is repeated until its answer is final. The Secret is read again for each question, so that a new
//! agent.yaml works without a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::names::{ACCESS_GROUP, ACCESS_VERSION};
use api::registration::{
    ClusterRegistration, ClusterRegistrationSpec, ClusterRegistrationStatus, Credential, REGISTRATION_KIND,
    RegistrationResult,
};
use api::secret::Secret;
use api::status::printable;
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::time::sleep;

use crate::account::message_of;
use crate::credentials::State;
use crate::key::KeyError;
use crate::limits::{DENIED_RETRY, REGISTRATION_FILE, REGISTRATION_RETRY, REGISTRATION_RETRY_MAX};
use crate::parent::{Answer, Parent};
use crate::tasks::Tasks;
use crate::trouble::{Code, Trouble};

/// What an invitation gave this cluster.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Address of the parent.
    pub parent_url: String,
    /// The only CA that is believed there, PEM.
    pub ca: Vec<u8>,
    /// The parent's token that lets the question through; it can do nothing else.
    pub token: Secret,
    /// Public id of the invitation.
    pub invitation: String,
    /// Its secret.
    pub secret: Secret,
    /// When it ends, as the invitation says.
    pub expires: Option<Timestamp>,
    /// What the parent will call this cluster; for the log.
    pub cluster_name: String,
    /// A shorter way for the tunnel.
    pub gateway: Option<Gateway>,
}

/// The hub's own front door.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Its address.
    pub url: String,
    /// The only CA that is believed there, PEM.
    pub ca: Vec<u8>,
}

impl Registration {
    /// Reads the directory into which the Secret is mounted.
    ///
    /// # Errors
    /// A file is missing, too long or empty.
    pub async fn read(directory: &Path) -> Result<Self, Trouble> {
        let file = |name: &'static str| read(directory.join(name));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        Ok(Self {
            parent_url: text(file("parentURL").await?),
            ca: file("ca.crt").await?,
            token: Secret::from(text(file("regToken").await?)),
            invitation: text(file("invitation").await?),
            secret: Secret::from(text(file("invitationSecret").await?)),
            // For people only; without it nothing is missing.
            expires: file("expires").await.ok().and_then(|bytes| text(bytes).parse().ok()),
            cluster_name: file("clusterName").await.map(text).unwrap_or_default(),
            // Half of it is a mistake; none is the usual case.
            gateway: match tokio::fs::try_exists(directory.join("gatewayURL")).await {
                Ok(true) => {
                    Some(Gateway { url: text(file("gatewayURL").await?), ca: file("gateway-ca.crt").await? })
                }
                Ok(false) | Err(_) => None,
            },
        })
    }

    /// Resolves when another invitation is mounted: nobody who applies a new agent.yaml should have to wait
    /// for the answer to the old one.
    pub async fn changed(directory: &Path) {
        let invitation = || read(directory.join("invitation"));
        let before = invitation().await.ok();
        loop {
            sleep(REGISTRATION_RETRY).await;
            let now = invitation().await.ok();
            if now.is_some() && now != before {
                return;
            }
        }
    }
}

async fn read(path: PathBuf) -> Result<Vec<u8>, Trouble> {
    let trouble = |why: &str| Trouble::new(Code::Registration, format!("{}: {why}", path.display()));
    let file = tokio::fs::File::open(&path).await.map_err(|error| trouble(&error.to_string()))?;
    let mut content = Vec::new();
    file.take(REGISTRATION_FILE + 1)
        .read_to_end(&mut content)
        .await
        .map_err(|error| trouble(&error.to_string()))?;
    if content.len() as u64 > REGISTRATION_FILE {
        return Err(trouble("too long"));
    }
    if content.trim_ascii().is_empty() {
        return Err(trouble("empty"));
    }
    Ok(content)
}

/// What the parent decided.
#[derive(Debug)]
pub enum Outcome {
    /// The cluster may join, with this.
    Approved(Credential),
    /// Nobody has decided; ask again after this.
    Pending(String, Duration),
    /// It may not; a person may take that back.
    Denied(String, Duration),
}

/// Asks once.
///
/// # Errors
/// The parent was not reached, or does not know the invitation.
pub async fn ask(
    registration: &Registration,
    state: &State,
    parent: &Parent,
    tasks: &Tasks,
) -> Result<Outcome, Trouble> {
    let question = question(registration, state)
        .map_err(|error| Trouble::new(Code::Child, format!("no registration can be made: {error}")))?;
    let answer = parent.register(question, &registration.token, tasks).await?;
    judge(registration, &answer)
}

fn question(registration: &Registration, state: &State) -> Result<Vec<u8>, QuestionError> {
    let cluster = state.cluster.as_str();
    let question = ClusterRegistration {
        api_version: format!("{ACCESS_GROUP}/{ACCESS_VERSION}"),
        kind: REGISTRATION_KIND.to_owned(),
        metadata: serde_json::Map::new(),
        spec: ClusterRegistrationSpec {
            invitation: registration.invitation.clone(),
            secret: registration.secret.clone(),
            cluster_id: cluster.to_owned(),
            public_key: state.key.public(),
            signature: state.key.prove(&registration.invitation, cluster)?,
            agent_version: crate::VERSION.to_owned(),
        },
        status: None,
    };
    Ok(serde_json::to_vec(&question)?)
}

#[derive(Debug, thiserror::Error)]
enum QuestionError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Answered {
    status: ClusterRegistrationStatus,
}

fn judge(registration: &Registration, answer: &Answer) -> Result<Outcome, Trouble> {
    let said = || message_of(&answer.body);
    match answer.code {
        StatusCode::OK | StatusCode::CREATED => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE => {
            let until = match registration.expires {
                Some(expires) if expires <= Timestamp::now() => format!("it expired at {expires}"),
                Some(expires) => {
                    format!("it would be good until {expires}, so it was revoked or used by another")
                }
                None => "it expired, was revoked or was used by another".to_owned(),
            };
            return Err(Trouble::new(
                Code::Refused,
                format!("the parent refused invitation {}: {until}; {}", registration.invitation, said()),
            ));
        }
        StatusCode::NOT_FOUND => {
            return Err(Trouble::new(Code::NotFound, format!("the parent has no hub: {}", said())));
        }
        code if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS => {
            let trouble = Trouble::new(Code::HubDown, format!("the parent answered {code}: {}", said()));
            return Err(trouble.not_before(answer.after));
        }
        code => {
            return Err(Trouble::new(
                Code::Refused,
                format!("the parent answered {code} to the registration: {}", said()),
            ));
        }
    }
    let Answered { status } = serde_json::from_slice(&answer.body).map_err(|_| {
        Trouble::new(Code::HubDown, "the parent answered the registration with something else; is it a hub?")
    })?;
    let message = printable(&status.message, 512);
    let after = match status.retry_after_seconds {
        0 => REGISTRATION_RETRY,
        seconds => Duration::from_secs(seconds.into()).min(REGISTRATION_RETRY_MAX),
    };
    match (status.result, status.credential) {
        (RegistrationResult::Approved, Some(credential)) => Ok(Outcome::Approved(credential)),
        (RegistrationResult::Approved, None) => {
            Ok(Outcome::Pending("approved; the hub is making the credential".to_owned(), after))
        }
        (RegistrationResult::Pending, _) => Ok(Outcome::Pending(message, after)),
        (RegistrationResult::Denied, _) => Ok(Outcome::Denied(message, DENIED_RETRY)),
        (RegistrationResult::Failed, _) => {
            Err(Trouble::new(Code::HubDown, format!("the hub could not set up this cluster: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::key::Key;

    fn registration(expires: &str) -> Registration {
        Registration {
            parent_url: "https://parent".to_owned(),
            ca: Vec::new(),
            token: Secret::from("t".to_owned()),
            invitation: "inv-1".to_owned(),
            secret: Secret::from("s".to_owned()),
            expires: expires.parse().ok(),
            cluster_name: "edge-1".to_owned(),
            gateway: None,
        }
    }

    fn answer(code: u16, body: &serde_json::Value) -> Answer {
        let code = StatusCode::from_u16(code).unwrap();
        Answer { code, after: Some(Duration::from_secs(9)), body: body.to_string().into() }
    }

    #[test]
    fn the_question_is_what_the_hub_reads_and_its_proof_is_in_it() {
        let state = State {
            key: Arc::new(Key::generate().unwrap()),
            cluster: "c1".parse().unwrap(),
            credential: None,
        };
        let json = question(&registration(""), &state).unwrap();
        let read: ClusterRegistration = serde_json::from_slice(&json).unwrap();
        assert_eq!(read.spec.public_key, state.key.public());
        assert_eq!((read.spec.cluster_id.as_str(), read.spec.invitation.as_str()), ("c1", "inv-1"));
        assert!(!read.spec.signature.is_empty());
    }

    #[test]
    fn each_answer_is_understood() {
        let judged = |code, body| judge(&registration("2020-01-01T00:00:00Z"), &answer(code, &body));
        let status =
            |result: &str| serde_json::json!({ "status": { "result": result, "retryAfterSeconds": 9 } });

        assert!(
            matches!(judged(201, status("Pending")), Ok(Outcome::Pending(_, after)) if after.as_secs() == 9)
        );
        assert!(
            matches!(judged(201, status("Denied")), Ok(Outcome::Denied(_, after)) if after.as_secs() == 60)
        );
        assert_eq!(judged(201, status("Failed")).unwrap_err().code, Code::HubDown);
        let approved = serde_json::json!({ "status": { "result": "Approved",
            "credential": { "token": "abc", "expires": "2030-01-01T00:00:00Z" } } });
        assert!(matches!(judged(201, approved), Ok(Outcome::Approved(_))));

        let expired = judged(401, serde_json::json!({})).unwrap_err();
        assert_eq!(expired.code, Code::Refused);
        assert!(expired.message.contains("expired at 2020-01-01"), "{expired}");
        assert_eq!(judged(404, serde_json::json!({})).unwrap_err().code, Code::NotFound);
        let busy = judged(503, serde_json::json!({})).unwrap_err();
        assert_eq!((busy.code, busy.after), (Code::HubDown, Some(Duration::from_secs(9))));
        assert_eq!(judged(200, serde_json::json!([])).unwrap_err().code, Code::HubDown);
    }

    #[test]
    fn a_hub_cannot_make_the_agent_wait_for_ever() {
        let body = serde_json::json!({ "status": { "result": "Pending", "retryAfterSeconds": u32::MAX } });
        let judged = judge(&registration(""), &answer(200, &body)).unwrap();
        assert!(matches!(judged, Outcome::Pending(_, after) if after == REGISTRATION_RETRY_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_invitation_ends_the_wait_for_the_old_one() {
        let scratch = crate::testing::Scratch::new();
        scratch.file("invitation", "inv-1");
        let changed = Registration::changed(&scratch.0);
        let apply = async {
            sleep(REGISTRATION_RETRY * 3).await;
            scratch.file("invitation", "inv-2");
        };
        let before = tokio::time::Instant::now();
        futures::join!(changed, apply);
        assert!(before.elapsed() >= REGISTRATION_RETRY * 3);
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let error = Registration::read(Path::new("/nonexistent")).await.unwrap_err();
        assert_eq!(error.code, Code::Registration);
        assert!(error.message.contains("parentURL"), "{error}");
    }
}
