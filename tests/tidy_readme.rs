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
        "docs/systems.md",
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

/// The table of systems: no row without its place and its proof, and what it names exists.
#[test]
fn the_table_of_systems_names_what_exists() {
    let text = read("docs/systems.md");
    let rows: Vec<_> = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| system")).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    let header = read("include/doppler.h");
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 4 && cells.iter().all(|c| !c.is_empty()), "{row}");
        assert!(cells[3].contains("tests/") || cells[3].contains("src/"), "no proof: {row}");
        for name in row.split('`').skip(1).step_by(2) {
            if let Some((file, test)) = name.split_once("::") {
                assert!(read(file).contains(&format!("fn {test}(")), "{name} does not exist");
            } else if name.contains('/') {
                assert!(root().join(name).exists(), "{name} does not exist");
            } else if name.starts_with("doppler_") && !name.contains(' ') {
                assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            }
        }
    }
}
