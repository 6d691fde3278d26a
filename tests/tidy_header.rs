//! `include/doppler.h` is what cbindgen makes of `src/ffi`, and it agrees with Cargo.toml. `BLESS=1 cargo test --test tidy_header` rewrites it.

use std::path::Path;

fn generate(root: &Path) -> String {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let (major, minor, patch) =
        (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH"));
    config.after_includes = Some(format!(
        "
/** Version of the library that this header belongs to; doppler_version_string() has that of the library in use. */
#define DOPPLER_VERSION_MAJOR {major}
#define DOPPLER_VERSION_MINOR {minor}
#define DOPPLER_VERSION_PATCH {patch}

/** ABI of this header; doppler_abi_version() must give the same. */
#define DOPPLER_ABI_VERSION {}

/** Define DOPPLER_DLL before including this header on Windows when linking the DLL's import library. */
#ifndef DOPPLER_API
#if defined(_WIN32) && defined(DOPPLER_DLL)
#define DOPPLER_API __declspec(dllimport)
#else
#define DOPPLER_API
#endif
#endif",
        doppler::ffi::ABI_VERSION
    ));
    // It follows the `mod` lines of this file; naming the others too would declare everything twice.
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/ffi/mod.rs"));
    let mut text = Vec::new();
    builder.generate().expect("cbindgen").write(&mut text);
    String::from_utf8(text).expect("UTF-8")
}

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/doppler.h");
    let wanted = generate(root);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &wanted).expect("writing the header");
        return;
    }
    let present = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    if present != wanted {
        let line = present.lines().zip(wanted.lines()).position(|(a, b)| a != b).map_or(0, |n| n + 1);
        panic!("include/doppler.h is out of date from line {line} on: BLESS=1 cargo test --test tidy_header");
    }
}

#[test]
fn every_function_is_guarded_and_declared_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = generate(root);
    let folder = root.join("src/ffi");
    for entry in std::fs::read_dir(folder).expect("src/ffi") {
        let path = entry.expect("an entry").path();
        let source = std::fs::read_to_string(&path).expect("a source");
        // A function with a result that is no status must not need the guard.
        for (i, _) in source.match_indices("extern \"C\" fn doppler_") {
            let function = &source[i..];
            let body = &function[..function.find("\n}").unwrap_or(function.len())];
            let name = &body["extern \"C\" fn ".len()..body.find('(').unwrap_or(body.len())];
            let guarded = body.contains("guard(|| ");
            let plain = ["doppler_abi_version", "doppler_version_string", "doppler_status_name", "doppler_last_error"];
            assert_ne!(guarded, plain.contains(&name), "{name}: bodies run inside guard");
            let declared = |l: &&str| !l.trim_start().starts_with(['*', '/']) && l.contains(&format!("{name}("));
            assert_eq!(header.lines().filter(declared).count(), 1, "{name}: declarations in the header");
        }
    }
}
