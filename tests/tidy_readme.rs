//! The README's program is the one that is compiled, and its links lead somewhere. No device.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).replace("\r\n", "\n")
}

#[test]
fn the_readme_shows_the_smallest_example_as_it_is() {
    let program = read("examples/c/embed_minimal.c");
    let block = format!("```c\n{}\n```", program.trim_end());
    assert!(read("README.md").contains(&block), "README.md must contain examples/c/embed_minimal.c verbatim");
}

/// Targets of `[text](target)` that are files of this repository.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|t| !t.contains("://") && !t.starts_with('#')).map(|t| t.split('#').next().unwrap_or(t)).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for name in [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/performance.md",
        "docs/testing.md",
    ] {
        let folder: PathBuf = root().join(name).parent().unwrap().into();
        for target in links(&read(name)) {
            if !folder.join(target).exists() {
                broken.push(format!("{name}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_changelog_knows_this_version() {
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    let text = read("CHANGELOG.md");
    assert!(text.contains(&heading) || text.contains("## [Unreleased]"), "CHANGELOG.md has no {heading}");
}
