//! The shared library exports exactly the functions of the header: nothing is missing, and nothing else can clash with the host's symbols.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSymbol};

/// Cargo puts the shared library beside the test programs.
fn library() -> PathBuf {
    let folder = std::env::current_exe().expect("this program").parent().expect("its folder").to_path_buf();
    let name = format!("{}doppler{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: cargo test builds it with the library", path.display());
    path
}

fn declared() -> BTreeSet<String> {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/doppler.h");
    let text = std::fs::read_to_string(header).expect("include/doppler.h");
    let functions = text.split("\nDOPPLER_API").skip(1).filter_map(|rest| rest.split_once('('));
    let name = |(head, _): (&str, &str)| {
        head.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default().to_string()
    };
    functions.map(name).collect()
}

#[test]
fn exports_are_the_functions_of_the_header() {
    let path = library();
    let bytes = std::fs::read(&path).expect("the library");
    let file = object::File::parse(&*bytes).expect("an object file");
    let exports: BTreeSet<String> = match file.format() {
        object::BinaryFormat::Elf => file
            .dynamic_symbols()
            .filter(|s| s.is_definition() && !s.is_local())
            .filter_map(|s| s.name().ok())
            .map(str::to_string)
            .collect(),
        _ => {
            let strip = |n: &[u8]| String::from_utf8_lossy(n).trim_start_matches('_').to_string();
            let names = file.exports().expect("exports");
            names.map(|e| e.expect("an export").name().name().map(strip).unwrap_or_default()).collect()
        }
    };
    let declared = declared();
    assert!(declared.len() > 30, "only {} functions were found in the header", declared.len());
    let missing: Vec<_> = declared.difference(&exports).collect();
    let extra: Vec<_> = exports.difference(&declared).collect();
    assert!(missing.is_empty() && extra.is_empty(), "declared only: {missing:?}\nexported only: {extra:?}");
}
