//! Writes the project's own container image as an OCI archive, from statically linked programs, without a container
//! engine. Equal programs give an equal digest, which it prints.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use tests::images::{Entry, Image};

/// The user that distroless images call `nonroot`; charts ask for it by number (`runAsNonRoot`).
const USER: &str = "65532:65532";

/// The programs, by the names that workloads call them.
const PROGRAMS: [&str; 3] = ["towline-hub", "towline-agent", "kubectl-towline"];

const USAGE: &str =
    "usage: image DIRECTORY OUTPUT [NAME:TAG [REVISION]], with the three programs in DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match write(&arguments) {
        Ok(line) => {
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &[String]) -> Result<String> {
    let [directory, output, rest @ ..] = arguments else { bail!("{USAGE}") };
    let name = rest.first().map_or_else(|| format!("towline:{}", env!("CARGO_PKG_VERSION")), String::clone);
    let revision = rest.get(1).map_or("", String::as_str);
    if rest.len() > 2 || !name.contains(':') {
        bail!("{USAGE}");
    }
    let image = Image {
        name: name.clone(),
        entries: entries(Path::new(directory))?,
        // Each workload names its own program.
        entrypoint: Vec::new(),
        user: USER.to_owned(),
        labels: labels(&name, revision),
    };
    let (archive, digest) = image.oci_archive()?;
    let output = PathBuf::from(output);
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    // Renamed into place, so that no reader ever meets half of it.
    let partial = output.with_extension("partial");
    std::fs::write(&partial, archive).with_context(|| partial.display().to_string())?;
    std::fs::rename(&partial, &output).with_context(|| output.display().to_string())?;
    Ok(format!("{name} {digest} {}", output.display()))
}

fn entries(directory: &Path) -> Result<Vec<Entry>> {
    let file = |path: &str, mode, content: &[u8]| Entry::File(path.to_owned(), mode, content.to_vec());
    let mut entries = vec![
        Entry::Directory("etc".to_owned(), 0o755),
        file("etc/group", 0o644, b"root:x:0:\nnonroot:x:65532:\n"),
        file("etc/passwd", 0o644, b"root:x:0:0:root:/:/none\nnonroot:x:65532:65532:nonroot:/:/none\n"),
        Entry::Directory("tmp".to_owned(), 0o1777),
    ];
    for program in PROGRAMS {
        let path = directory.join(program);
        let content = std::fs::read(&path).with_context(|| path.display().to_string())?;
        if wants_a_loader(&content) {
            bail!("{} is dynamically linked: build it with -C target-feature=+crt-static", path.display());
        }
        entries.push(file(program, 0o755, &content));
    }
    Ok(entries)
}

/// Whether a 64-bit little-endian ELF file has a program header PT_INTERP (elf(5)): it asks for a dynamic loader,
/// which an image without a C library does not have.
fn wants_a_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |offset: usize, length: usize| {
        let bytes = elf.get(offset..offset + length)?;
        Some(bytes.iter().rev().fold(0u64, |sum, b| (sum << 8) | u64::from(*b)))
    };
    let headers = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|i| usize::try_from(start + i * size).ok().and_then(|at| number(at, 4)))
            .collect::<Option<Vec<_>>>()
    };
    elf.starts_with(b"\x7fELF") && headers().is_some_and(|kinds| kinds.contains(&PT_INTERP))
}

/// Labels of the OCI image-spec (`annotations.md`). No time of creation: it would change the digest.
fn labels(name: &str, revision: &str) -> Vec<(String, String)> {
    let version = name.rsplit_once(':').map_or("", |(_, tag)| tag);
    [
        ("title", "towline"),
        ("revision", revision),
        ("description", "Kubernetes multi-cluster access hub"),
        ("licenses", "Apache-2.0"),
        ("version", version),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned()))
    .collect()
}
