//! One command's connection to the parent: every question has a deadline and becomes a value or a
//! [`Failure`].

use std::fmt;
use std::future::Future;
use std::time::Instant;

use kube::api::{Api, ListParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::args::Global;
use crate::config;
use crate::failure::{Exit, Failure};
use crate::output::{say, shown};

/// Objects asked for at once: the page size of kubectl.
const PAGE: u32 = 500;
/// Objects taken at all: 100 pages. At about 4 KiB each the list stays under 200 MiB.
const MAX_OBJECTS: usize = 50_000;

/// The connection, and what the caller said about it.
pub struct Session {
    pub(crate) client: Client,
    pub(crate) global: Global,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("global", &self.global).finish_non_exhaustive()
    }
}

impl Session {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// The kubeconfig cannot be used.
    pub async fn open(global: &Global) -> Result<Self, Failure> {
        let config = config::client_config(global).await?;
        if config.accept_invalid_certs {
            return Err(Failure::new(
                Exit::Error,
                "the kubeconfig has insecure-skip-tls-verify: whoever stands in between could read invitations \
                 and approve clusters",
            )
            .next("put the parent's CA into certificate-authority-data instead"));
        }
        if global.verbose > 0 {
            // Not the whole URL: it may hold a password.
            let host = config.cluster_url.host().unwrap_or_default();
            say(&format!("parent: {}:{}", shown(host), config.cluster_url.port_u16().unwrap_or(443)));
        }
        let client = Client::try_from(config)
            .map_err(|error| Failure::of_kube("prepare the connection to the parent", &error))?;
        Ok(Self { client, global: global.clone() })
    }

    /// Asks the parent one thing, within the request timeout. `doing` completes "could not …".
    pub(crate) async fn ask<T>(
        &self,
        doing: &str,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        let answer = tokio::time::timeout(self.global.request_timeout, question).await;
        if self.global.verbose > 0 {
            say(&format!("{doing}: {} ms", started.elapsed().as_millis()));
        }
        match answer {
            Ok(answer) => answer.map_err(|error| Failure::of_kube(doing, &error)),
            Err(_) => {
                let limit = self.global.request_timeout.as_secs();
                Err(Failure::new(Exit::Timeout, format!("could not {doing}: no answer in {limit} s"))
                    .next("check the network, or wait longer: --request-timeout 2m"))
            }
        }
    }

    /// All objects as the parent's API server has them in memory, which is at most moments old: of 3,000 clusters it answers
    /// in a tenth of the time, for it neither asks etcd nor decodes what that has. Whoever misses something asks again with
    /// [`Session::list`].
    pub(crate) async fn list_cached<K>(
        &self,
        doing: &str,
        api: &Api<K>,
        params: ListParams,
    ) -> Result<Vec<K>, Failure>
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug,
    {
        // There are no pages in memory (apiserver `storage/cacher`), and kube drops "any version" beside a limit.
        let list = self.ask(doing, api.list(&params.match_any())).await?;
        if list.items.len() > MAX_OBJECTS {
            return Err(too_many(doing));
        }
        Ok(list.items)
    }

    /// All objects as they are now, page by page.
    pub(crate) async fn list<K>(
        &self,
        doing: &str,
        api: &Api<K>,
        params: ListParams,
    ) -> Result<Vec<K>, Failure>
    where
        K: Resource + Clone + DeserializeOwned + fmt::Debug,
    {
        let mut all = Vec::new();
        let mut page = params.limit(PAGE);
        loop {
            let list = self.ask(doing, api.list(&page)).await?;
            all.extend(list.items);
            if all.len() > MAX_OBJECTS {
                return Err(too_many(doing));
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    /// How the next command has to begin.
    pub(crate) fn command(&self) -> String {
        self.global.command()
    }
}

fn too_many(doing: &str) -> Failure {
    Failure::new(Exit::Error, format!("could not {doing}: more than {MAX_OBJECTS}"))
        .next("narrow the list: -l SELECTOR")
}
