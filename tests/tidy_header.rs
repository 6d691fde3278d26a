//! `include/doppler.h` is what cbindgen makes of `src/ffi`, and it agrees with Cargo.toml. `BLESS=1 cargo test --test tidy_header` rewrites it.

use std::path::Path;

/// In the order in which the header shows their items.
const SOURCES: [&str; 11] = [
    "status.rs",
    "mod.rs",
    "adapter.rs",
    "stats.rs",
    "context.rs",
    "model.rs",
    "model_stats.rs",
    "text.rs",
    "session.rs",
    "snapshot.rs",
    "generate.rs",
];

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
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src/ffi").join(source));
    }
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
fn all_of_src_ffi_is_seen() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi");
    for entry in std::fs::read_dir(folder).expect("src/ffi") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name").to_string();
        let source = std::fs::read_to_string(&path).expect("a source");
        let exports = source.lines().any(|l| l.starts_with("#[unsafe(no_mangle)]") || l.starts_with("#[repr(C)]"));
        assert!(!exports || SOURCES.contains(&name.as_str()), "{name} exports C items: add it to SOURCES");
        // A function with a result that is no status must not need the guard.
        for (i, _) in source.match_indices("extern \"C\" fn doppler_") {
            let function = &source[i..];
            let body = &function[..function.find("\n}").unwrap_or(function.len())];
            let name = &body["extern \"C\" fn ".len()..body.find('(').unwrap_or(body.len())];
            let guarded = body.contains("guard(|| ");
            let plain = ["doppler_abi_version", "doppler_version_string", "doppler_status_name", "doppler_last_error"];
            assert_ne!(guarded, plain.contains(&name), "{name}: bodies run inside guard");
        }
    }
}
