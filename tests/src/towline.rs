//! Where our own binaries and the image are. They are built before the tests run (`make binaries image`), as a
//! person would build them: static, in release mode.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Our own programs.
#[derive(Debug, Clone)]
pub struct Towline {
    /// `towline-hub`
    pub hub: PathBuf,
    /// `towline-agent`
    pub agent: PathBuf,
    /// `kubectl-towline`
    pub cli: PathBuf,
    /// The OCI archive with all three.
    pub image: PathBuf,
    /// What the hub is started with besides what it needs here.
    pub hub_arguments: Vec<String>,
}

/// The repository.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

impl Towline {
    /// Finds them in `target/`, or in the directory that `TOWLINE_BINARIES` names.
    ///
    /// # Errors
    /// When one is missing; says which, and what builds it.
    pub fn find() -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the one place in the tests that reads this variable")]
        let given = std::env::var_os("TOWLINE_BINARIES").map(PathBuf::from);
        let target = repository().join("target");
        let directory = given
            .unwrap_or_else(|| target.join(format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH)));
        let found = Self {
            hub: directory.join("towline-hub"),
            agent: directory.join("towline-agent"),
            cli: directory.join("kubectl-towline"),
            image: target.join("image/towline.oci.tar"),
            hub_arguments: Vec::new(),
        };
        let missing: Vec<_> = [&found.hub, &found.agent, &found.cli, &found.image]
            .into_iter()
            .filter(|path| !path.is_file())
            .map(|path| path.display().to_string())
            .collect();
        if !missing.is_empty() {
            bail!("not built yet: {}; run `make binaries image` first", missing.join(", "));
        }
        Ok(found)
    }
}
