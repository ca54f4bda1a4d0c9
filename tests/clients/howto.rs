//! The how-to pages say which trials show them: those have to exist.

use anyhow::{Result, ensure};
use tests::towline::repository;

/// Each page's name and text.
fn pages() -> Result<Vec<(String, String)>> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(repository().join("docs/howto"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pages.push((name, std::fs::read_to_string(&path)?));
    }
    ensure!(!pages.is_empty(), "there are no pages");
    Ok(pages)
}

/// Trials are named as `clients::NAME`, or by their beginning as `clients::NAME*`.
pub(crate) fn names_only_trials_that_exist(trials: &[String]) -> Result<()> {
    for (page, text) in pages()? {
        for named in text.split("`clients::").skip(1).filter_map(|rest| rest.split('`').next()) {
            let found = match named.strip_suffix('*') {
                Some(beginning) => trials.iter().any(|trial| trial.starts_with(beginning)),
                None => trials.iter().any(|trial| trial == named),
            };
            ensure!(found, "{page} names {named}, and there is no such trial");
        }
    }
    Ok(())
}
