//! The Secret `parent-cluster` in the child: the agent's key, the cluster it was made in, and the credential
//! that the hub gave. Written whole and by resourceVersion, so that two agents never mix their parts. What
//! is in it is kept in memory too: a child whose API server is away still reaches its hub.

use std::sync::Arc;

use api::names::{CREDENTIAL_SECRET, ClusterId, SYSTEM_NAMESPACE};
use api::registration::Credential;
use api::secret::Secret;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::account::{Account, AskError};
use crate::key::{Key, KeyError};
use crate::limits::{MAX_TOKEN, WRITE_TRIES};
use crate::trouble::{Code, Trouble};

const KEY: &str = "agent.key";
const CLUSTER_ID: &str = "cluster-id";
const TOKEN: &str = "token";
const EXPIRES: &str = "expires";
const PARENT_URL: &str = "parentURL";
/// Annotation: the process that started last and wants to serve this cluster. Who can write it is in this cluster, and a
/// copy of the cluster has a Secret of its own.
const SUCCESSOR: &str = "access.towline.io/agent";

/// What the agent is and has.
#[derive(Debug, Clone)]
pub struct State {
    /// Its key.
    pub key: Arc<Key>,
    /// The UID of this cluster's `kube-system` namespace.
    pub cluster: ClusterId,
    /// What it was given, and by which parent.
    pub credential: Option<Held>,
}

/// A credential and the parent that it is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Token and expiry.
    pub credential: Credential,
    /// `parentURL` of the invitation.
    pub parent: String,
}

/// Why a credential was not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Empty, too long, or nothing that can stand in a header.
    #[error("the token is empty, too long or not printable")]
    Token,
    /// Nothing was loaded before, so there is nothing to add to.
    #[error("the agent has no key yet")]
    NotLoaded,
    /// The child's API server.
    #[error("Secret {SYSTEM_NAMESPACE}/{CREDENTIAL_SECRET} could not be written: {0}")]
    Child(#[from] AskError),
    /// The Secret has no form of a Secret.
    #[error("Secret {SYSTEM_NAMESPACE}/{CREDENTIAL_SECRET} is not a Secret")]
    Form,
    /// Somebody else writes it all the time.
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{CREDENTIAL_SECRET} was changed by somebody else at each of {WRITE_TRIES} tries"
    )]
    Contended,
    /// Another agent of this cluster was faster, or somebody put a backup there.
    #[error(
        "Secret {SYSTEM_NAMESPACE}/{CREDENTIAL_SECRET} holds another key of this cluster, {0}; it is not overwritten: run one agent, and restart it to use that key"
    )]
    OtherKey(String),
    /// The key cannot be written.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The stored credentials.
#[derive(Debug)]
pub struct Credentials {
    agent: Account,
    /// This process.
    instance: String,
    state: ArcSwapOption<State>,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
}

fn path() -> String {
    format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{CREDENTIAL_SECRET}")
}

impl Credentials {
    /// Of this process. Reads nothing yet.
    pub fn new(agent: Account, instance: &str) -> Self {
        Self { agent, instance: instance.to_owned(), state: ArcSwapOption::empty() }
    }

    /// What the agent is and has. At first use it reads the Secret, and makes and stores a key if there is
    /// none that was made in this cluster.
    ///
    /// # Errors
    /// The child's API server does not give or take what is needed.
    pub async fn state(&self) -> Result<Arc<State>, Trouble> {
        if let Some(state) = self.state.load_full() {
            return Ok(state);
        }
        let child = |error: &dyn std::fmt::Display| Trouble::new(Code::Child, error.to_string());
        let namespace: Object =
            self.agent.get("/api/v1/namespaces/kube-system").await.map_err(|error| child(&error))?;
        let cluster: ClusterId = namespace.metadata.uid.parse().map_err(|error| child(&error))?;
        let secret: Value = self.agent.get(&path()).await.map_err(|error| match error.code() {
            Some(StatusCode::NOT_FOUND) => Trouble::new(
                Code::Registration,
                format!("Secret {SYSTEM_NAMESPACE}/{CREDENTIAL_SECRET} is missing; agent.yaml holds it"),
            ),
            _ => child(&error),
        })?;
        let state = match read(&secret, &cluster) {
            Some(state) => state,
            None => {
                let key = Arc::new(Key::generate().map_err(|error| child(&error))?);
                let state = State { key, cluster, credential: None };
                self.write(&state).await.map_err(|error| child(&error))?;
                state
            }
        };
        tracing::info!(
            cluster = %state.cluster,
            key = %state.key.fingerprint(),
            "this agent's key; compare with: kubectl get clsrr (in the parent) before approving"
        );
        if let Err(error) = self.claim().await {
            // Then it waits until the other one is gone, if there is one.
            tracing::info!(%error, "this process could not be named as the one that serves from now on");
        }
        let state = Arc::new(state);
        self.state.store(Some(Arc::clone(&state)));
        Ok(state)
    }

    /// Says in the Secret that this process wants to serve the cluster, for one that does so already: that one reads it
    /// when the hub asks. Once, at the start: of two processes the one that was started later serves.
    async fn claim(&self) -> Result<(), StoreError> {
        let mut secret: Value = self.agent.get(&path()).await?;
        let metadata = secret.get_mut("metadata").and_then(Value::as_object_mut).ok_or(StoreError::Form)?;
        let annotations = metadata.entry("annotations").or_insert(Value::Null);
        if annotations.is_null() {
            *annotations = json!({});
        }
        let annotations = annotations.as_object_mut().ok_or(StoreError::Form)?;
        annotations.insert(SUCCESSOR.to_owned(), self.instance.as_str().into());
        self.agent.put::<Value>(&path(), &secret).await?;
        Ok(())
    }

    /// Whether another process of this cluster wants to serve it, as its Secret says now.
    ///
    /// # Errors
    /// It could not be read.
    pub async fn is_successor(&self, instance: &str) -> Result<bool, AskError> {
        let secret: Value = self.agent.get(&path()).await?;
        let named = &secret["metadata"]["annotations"][SUCCESSOR];
        Ok(instance != self.instance && named.as_str() == Some(instance))
    }

    /// Keeps a credential: in memory at once, then in the Secret.
    ///
    /// # Errors
    /// It cannot be used, or it is in memory only.
    pub async fn store(&self, credential: Credential, parent: &str) -> Result<(), StoreError> {
        let token = credential.token.reveal();
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(StoreError::Token);
        }
        let state = self.state.load_full().ok_or(StoreError::NotLoaded)?;
        let held = Held { credential, parent: parent.to_owned() };
        let state = State { credential: Some(held), ..State::clone(&state) };
        self.state.store(Some(Arc::new(state)));
        // Another tunnel may bring one at the same time, and its write may come first. Whoever finds that out writes what
        // counts now, so that the Secret holds in the end what is in memory.
        for _ in 0..WRITE_TRIES {
            let state = self.state.load_full().ok_or(StoreError::NotLoaded)?;
            self.write(&state).await?;
            if self.state.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &state)) {
                return Ok(());
            }
        }
        Err(StoreError::Contended)
    }

    /// Renews the credential of the parent that gave the present one.
    ///
    /// # Errors
    /// As [`Credentials::store`].
    pub async fn renew(&self, credential: Credential) -> Result<(), StoreError> {
        let state = self.state.load_full().ok_or(StoreError::NotLoaded)?;
        let parent =
            state.credential.as_ref().map(|held| held.parent.clone()).ok_or(StoreError::NotLoaded)?;
        self.store(credential, &parent).await
    }

    async fn write(&self, state: &State) -> Result<(), StoreError> {
        for _ in 0..WRITE_TRIES {
            // Read first: the object's labels and annotations are those of whoever applied agent.yaml, and
            // its resourceVersion makes the write fail if somebody was faster.
            let mut secret: Value = self.agent.get(&path()).await?;
            // A key that was made here may be the one that is registered.
            if let Some(there) = read(&secret, &state.cluster).map(|there| there.key.fingerprint())
                && there != state.key.fingerprint()
            {
                return Err(StoreError::OtherKey(there));
            }
            fill(&mut secret, state)?;
            match self.agent.put::<Value>(&path(), &secret).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(StatusCode::CONFLICT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended)
    }
}

/// What stands in the Secret; `None` if there is no key that was made in this cluster. A Secret that came
/// with a copy of another cluster is such a case: its key is the other one's.
fn read(secret: &Value, cluster: &ClusterId) -> Option<State> {
    let text = |name: &str| -> Option<String> {
        let value = secret.get("data")?.get(name)?.as_str()?;
        String::from_utf8(STANDARD.decode(value).ok()?).ok()
    };
    if text(CLUSTER_ID)? != cluster.as_str() {
        return None;
    }
    let key = Key::from_pem(&Secret::from(text(KEY)?)).ok()?;
    let credential = || -> Option<Held> {
        let token = Secret::from(text(TOKEN).filter(|token| !token.is_empty())?);
        Some(Held {
            credential: Credential { token, expires: text(EXPIRES)?.parse().ok()? },
            parent: text(PARENT_URL)?,
        })
    };
    Some(State { key: Arc::new(key), cluster: cluster.clone(), credential: credential() })
}

fn fill(secret: &mut Value, state: &State) -> Result<(), StoreError> {
    let object = secret.as_object_mut().ok_or(StoreError::Form)?;
    let encode = |text: &str| STANDARD.encode(text);
    let mut data = json!({
        KEY: encode(state.key.to_pem()?.reveal()),
        CLUSTER_ID: encode(state.cluster.as_str()),
    });
    if let (Some(held), Some(data)) = (&state.credential, data.as_object_mut()) {
        data.insert(TOKEN.to_owned(), encode(held.credential.token.reveal()).into());
        data.insert(EXPIRES.to_owned(), encode(&held.credential.expires.to_string()).into());
        data.insert(PARENT_URL.to_owned(), encode(&held.parent).into());
    }
    object.insert("data".to_owned(), data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::account::Bearer;
    use crate::upstream::Upstream;

    fn stored(credential: Option<Held>) -> (State, Value) {
        let state =
            State { key: Arc::new(Key::generate().unwrap()), cluster: "c1".parse().unwrap(), credential };
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "parent-cluster", "resourceVersion": "7", "labels": { "a": "b" } },
        });
        fill(&mut secret, &state).unwrap();
        (state, secret)
    }

    #[test]
    fn what_was_written_is_read_and_the_rest_of_the_object_stays() {
        let held = Held {
            credential: Credential {
                token: Secret::from("abc".to_owned()),
                expires: Timestamp::from_second(2_000_000_000).unwrap(),
            },
            parent: "https://parent".to_owned(),
        };
        let (state, secret) = stored(Some(held.clone()));
        let again = read(&secret, &state.cluster).unwrap();
        assert_eq!(again.key.fingerprint(), state.key.fingerprint());
        assert_eq!(again.credential, Some(held));
        assert_eq!(secret["metadata"]["resourceVersion"], "7");
        assert_eq!(secret["metadata"]["labels"]["a"], "b");
    }

    #[test]
    fn a_secret_of_another_cluster_is_not_used() {
        let (_, secret) = stored(None);
        assert!(read(&secret, &"c2".parse().unwrap()).is_none());
        assert!(read(&secret, &"c1".parse().unwrap()).is_some());
    }

    #[tokio::test]
    async fn another_key_of_this_cluster_is_never_overwritten() {
        let child = crate::testing::Child::new(&[]);
        let server = child.serve().await;
        let upstream = Upstream::new(&server.address(), server.ca_file()).unwrap();
        let token = Bearer::File(server.scratch.file("token", "agent-token"));
        let account = Account::new(Arc::new(upstream), token);
        let (late, first) = (Credentials::new(account.clone(), "late"), Credentials::new(account, "first"));
        // Both found no key and made one; the other one was faster to write.
        let cluster: ClusterId = crate::testing::CLUSTER.parse().unwrap();
        let state =
            State { key: Arc::new(Key::generate().unwrap()), cluster: cluster.clone(), credential: None };
        let held = first.state().await.unwrap();
        let before = child.stored.lock().unwrap().clone();
        let error = late.write(&state).await.unwrap_err();
        assert!(matches!(&error, StoreError::OtherKey(key) if *key == held.key.fingerprint()), "{error}");
        assert_eq!(*child.stored.lock().unwrap(), before);
        assert_eq!(
            late.state().await.unwrap().key.fingerprint(),
            held.key.fingerprint(),
            "it takes that one"
        );
        // Its own key may be written again, and one of another cluster is no key here.
        late.write(&held).await.unwrap();
        let elsewhere = State { cluster: "c2".parse().unwrap(), ..State::clone(&held) };
        fill(&mut child.stored.lock().unwrap(), &elsewhere).unwrap();
        late.write(&state).await.unwrap();
    }

    #[test]
    fn an_empty_or_broken_secret_means_a_new_key() {
        let cluster = "c1".parse().unwrap();
        for secret in [json!({}), json!({ "data": null }), json!({ "data": { "cluster-id": "%%" } })] {
            assert!(read(&secret, &cluster).is_none());
        }
        let (_, mut secret) = stored(None);
        secret["data"]["agent.key"] = STANDARD.encode("x").into();
        assert!(read(&secret, &cluster).is_none());
    }
}
