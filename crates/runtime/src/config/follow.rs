//! Follows the configuration file while the process runs. What can change is changed, what cannot says so once, and a
//! file with mistakes changes nothing.

use std::time::Duration;

use clap::ArgMatches;
use tokio::time::sleep;

use super::{Change, Effective, Source};

/// How often the file is read: kubelet needs up to a minute to write a changed ConfigMap, an editor none.
const EVERY: Duration = Duration::from_secs(5);

/// What has become of a changed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It is taken; these keys are changed, and those want a restart.
    Taken {
        /// In force from now on.
        now: Vec<Change>,
        /// Not before a restart.
        later: Vec<Change>,
    },
    /// It has these mistakes, and nothing is changed.
    Refused(Vec<String>),
}

/// The file as it was when it was last looked at.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    live: &'static [&'static str],
    running: Effective,
    seen: Option<Seen>,
}

/// What a look at the file gave.
type Seen = Result<Effective, Vec<String>>;

impl Follower {
    /// `running` is what the process was started with; `live` are the keys that it can change.
    pub fn new(source: Source, live: &'static [&'static str], running: Effective) -> Self {
        Self { source, live, running, seen: None }
    }

    /// What holds now.
    pub fn running(&self) -> &Effective {
        &self.running
    }

    /// What would hold after a restart.
    pub fn wanted(&self) -> &Effective {
        match &self.seen {
            Some(Ok(wanted)) => wanted,
            Some(Err(_)) | None => &self.running,
        }
    }

    /// Whether there is a file to follow at all.
    pub fn has_file(&self) -> bool {
        self.running.file.is_some()
    }

    /// Waits, and looks at the file. `take` says what else is wrong, or puts what has changed into force.
    pub async fn next(&mut self, mut take: impl FnMut(&ArgMatches) -> Result<(), Vec<String>>) -> News {
        loop {
            sleep(EVERY).await;
            if let Some(news) = self.look(&mut take) {
                return news;
            }
        }
    }

    /// Looks once; nothing if all is as it was.
    pub fn look(&mut self, take: &mut impl FnMut(&ArgMatches) -> Result<(), Vec<String>>) -> Option<News> {
        let outcome = match self.source.read() {
            // What was good stays good while nobody changes it; what was bad may have been for another file's sake.
            Ok(merged) if merged.mistakes.is_empty() && self.seen() == Ok(&merged.effective) => return None,
            Ok(merged) if merged.mistakes.is_empty() => match take(&merged.matches) {
                Ok(()) => Ok(merged.effective),
                Err(mistakes) => {
                    Err(mistakes.into_iter().map(|mistake| merged.effective.place(mistake)).collect())
                }
            },
            Ok(merged) => Err(merged.mistakes),
            Err(error) => Err(vec![error.to_string()]),
        };
        if self.seen() == outcome.as_ref() {
            return None;
        }
        let news = match &outcome {
            Err(mistakes) => News::Refused(mistakes.clone()),
            Ok(next) => {
                let changes = self.running.changes(next);
                let (now, later) =
                    changes.into_iter().partition(|change| self.live.contains(&change.key.as_str()));
                self.running.adopt(next, self.live);
                News::Taken { now, later }
            }
        };
        self.seen = Some(outcome);
        Some(news)
    }

    fn seen(&self) -> Result<&Effective, &Vec<String>> {
        self.seen.as_ref().map_or(Ok(&self.running), Result::as_ref)
    }
}

impl News {
    /// Tells an operator.
    pub fn log(&self) {
        match self {
            Self::Refused(mistakes) => tracing::warn!(
                mistakes = mistakes.join("; "),
                "the configuration file has mistakes; what was in force stays so"
            ),
            Self::Taken { now, later } => {
                tracing::info!(
                    changed = now.len(),
                    restart = later.len(),
                    "the configuration file was read again"
                );
                for Change { key, from, to } in now {
                    tracing::info!(key, from, to, "the configuration has changed");
                }
                for Change { key, from, to } in later {
                    tracing::warn!(
                        key,
                        running = from,
                        wanted = to,
                        "the configuration has changed, and this key needs a restart"
                    );
                }
            }
        }
    }
}
