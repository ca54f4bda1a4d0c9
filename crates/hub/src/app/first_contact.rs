//! The first word with the parent: waits for an API server that is not there yet, and refuses one that will not do. What
//! no waiting can mend ends the start at once.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use kube::Client;
use runtime::backoff::Backoff;
use runtime::stop::Stop;
use tokio::time::{Instant, sleep, timeout};

/// Oldest parent: its aggregator names the user's groups and keeps upgrades whole, and tests begin with it.
const OLDEST: (u32, u32) = (1, 20);
/// First pause between two tries, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Then the process ends, and whoever started it may do better with a new one. Below the two minutes of the startup probe.
const PATIENCE: Duration = Duration::from_secs(90);
/// For one answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for the parent's API server and looks at its version.
///
/// # Errors
/// It is too old, does not know the hub, or has not answered for [`PATIENCE`].
pub(super) async fn greet(client: &Client, stop: &Stop) -> anyhow::Result<()> {
    let (mut pauses, end) = (Backoff::new(PAUSES.0, PAUSES.1), Instant::now() + PATIENCE);
    loop {
        let why = match timeout(DEADLINE, client.apiserver_version()).await {
            Ok(Ok(version)) => return new_enough(&version.major, &version.minor),
            Ok(Err(kube::Error::Api(status))) if status.code == StatusCode::UNAUTHORIZED.as_u16() => {
                bail!(
                    "the parent's API server does not know the hub: its token or certificate is not one of this cluster, or has expired (401); look at the service account clusternet-hub, or at --kubeconfig"
                );
            }
            // Whoever may not see the version may still do all that the hub needs.
            Ok(Err(kube::Error::Api(status))) if status.code == StatusCode::FORBIDDEN.as_u16() => {
                tracing::warn!(
                    "the hub may not see the parent's version, so nobody knows whether it is new enough"
                );
                return Ok(());
            }
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        if Instant::now() >= end {
            bail!("the parent's API server has not answered for {PATIENCE:?}: {why}");
        }
        let pause = pauses.delay();
        tracing::warn!(why, again_in = ?pause, "the parent's API server does not answer");
        tokio::select! {
            biased;
            () = stop.cancelled() => bail!("told to stop before the parent's API server answered"),
            () = sleep(pause) => {}
        }
    }
}

/// Providers write things like `20+`.
fn new_enough(major: &str, minor: &str) -> anyhow::Result<()> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse::<u32>()
            .with_context(|| format!("the parent's version is {major}.{minor}, which is none"))
    };
    let version = (number(major)?, number(minor)?);
    ensure!(
        version >= OLDEST,
        "the parent is Kubernetes {}.{}, which is too old: the hub needs {}.{} or later; upgrade the parent, or choose another one",
        version.0,
        version.1,
        OLDEST.0,
        OLDEST.1
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A parent that gives these answers, one to a connection, and the last one for ever.
    async fn parent(
        answers: &'static [&'static str],
    ) -> (Client, Arc<AtomicUsize>, impl Future<Output = ()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut config = kube::Config::new(url.parse().unwrap());
        config.default_retry = false;
        runtime::tls::provider();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let serve = async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let answer = answers[counted.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        };
        (Client::try_from(config).unwrap(), asked, serve)
    }

    async fn greeted(answers: &'static [&'static str]) -> (Result<(), String>, usize) {
        let (client, asked, serve) = parent(answers).await;
        let stop = Stop::new();
        let greeted = tokio::select! {
            greeted = greet(&client, &stop) => greeted,
            () = serve => unreachable!("it serves for ever"),
        };
        (greeted.map_err(|error| format!("{error:#}")), asked.load(Ordering::Relaxed))
    }

    const NEW: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"major\":\"1\",\"minor\":\"20+\",\"gitVersion\":\"v1.20.1\",\"gitCommit\":\"\",\"gitTreeState\":\"\",\"buildDate\":\"2020-12-18T12:00:47Z\",\"goVersion\":\"go1.15\",\"compiler\":\"gc\",\"platform\":\"linux/amd64\",\"x\":\"1234567\"}";
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const STRANGER: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_parent_that_comes_late_is_waited_for_and_one_that_says_no_is_not() {
        assert_eq!(greeted(&[BUSY, "", NEW]).await, (Ok(()), 3));
        let (refused, asked) = greeted(&[STRANGER]).await;
        assert!(refused.unwrap_err().contains("does not know the hub") && asked == 1);
        assert_eq!(greeted(&[FORBIDDEN]).await, (Ok(()), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_parent_that_never_answers_ends_the_start() {
        let (refused, asked) = greeted(&[BUSY]).await;
        let why = refused.unwrap_err();
        assert!(why.contains("has not answered for 90s") && asked > 5, "{why}: {asked}");
    }

    #[test]
    fn a_kubernetes_that_is_too_old_is_refused_with_what_to_do() {
        for (major, minor) in [("1", "20"), ("1", "20+"), ("1", "36"), ("2", "0"), ("1", "31-eks")] {
            assert!(new_enough(major, minor).is_ok(), "{major}.{minor}");
        }
        for (major, minor) in [("1", "19+"), ("0", "99"), ("1", "9")] {
            let why = new_enough(major, minor).unwrap_err().to_string();
            assert!(why.contains("needs 1.20 or later; upgrade"), "{why}");
        }
        assert!(new_enough("", "x").is_err());
    }
}
