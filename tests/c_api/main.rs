//! Compiles the C and C++ programs of this folder and of `examples/`, and runs them against the library that `cargo test` just built.
//!
//! Each C program is compiled as C99, strictly, and run twice: as it is, and with the address and undefined-behaviour sanitizers on its side.
//! `CC` and `CXX` choose the compilers; `RUNNER` ("valgrind --error-exitcode=1", say) goes before the plain runs; `DOPPLER_ADAPTER` chooses
//! the adapter. A machine without compiler or adapter fails: this is the test of the library's surface.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
const TIME_LIMIT: Duration = Duration::from_secs(600);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("assets/hearth-5m-Q8_0.gguf")
}

/// Cargo puts the shared library beside the test programs.
fn library_folder() -> PathBuf {
    let folder = std::env::current_exe().expect("this program").parent().expect("its folder").to_path_buf();
    let name = format!("{}doppler{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    assert!(folder.join(&name).exists(), "{name} is missing in {}", folder.display());
    folder
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    C99,
    C11,
    Cpp17,
}

fn compiler(language: Language) -> Command {
    let (variable, default, standard) = match language {
        Language::C99 => ("CC", "cc", "-std=c99"),
        Language::C11 => ("CC", "cc", "-std=c11"),
        Language::Cpp17 => ("CXX", "c++", "-std=c++17"),
    };
    let name = std::env::var(variable).unwrap_or_else(|_| default.to_string());
    let mut words = name.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(default));
    command.args(words).arg(standard).args(STRICT).arg("-I").arg(root().join("include"));
    command
}

fn finish(mut command: Command, what: &str, must_succeed: bool) -> Output {
    let started = Instant::now();
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(what.replace([' ', '/', '(', ')'], "_"));
    let (words, complaints) = (log.with_extension("out"), log.with_extension("err"));
    let open = |path: &Path| std::fs::File::create(path).expect("a log file");
    // Software drivers want a directory for their sockets, and complain without.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    }
    // Outputs go to files: pipes that nobody reads would stop a program that talks much.
    command.stdin(Stdio::null()).stdout(open(&words)).stderr(open(&complaints));
    let mut child = command.spawn().unwrap_or_else(|e| {
        panic!(
            "{what}: {:?} does not start ({e}); this test needs a C and a C++ compiler (CC, CXX)",
            command.get_program()
        )
    });
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            break status;
        }
        if started.elapsed() > TIME_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: still running after {TIME_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (stdout, stderr) = (std::fs::read(&words).unwrap_or_default(), std::fs::read(&complaints).unwrap_or_default());
    let text = [String::from_utf8_lossy(&stderr), String::from_utf8_lossy(&stdout)].concat();
    assert!(!must_succeed || status.success(), "{what}: {status}\n{text}");
    Output { status, stdout, stderr }
}

/// Compiles one source to a program.
fn build(source: &Path, language: Language, sanitize: bool) -> PathBuf {
    let stem = source.file_stem().and_then(|s| s.to_str()).expect("a file name");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = folder.join(format!("{stem}{}{}", if sanitize { "-san" } else { "" }, std::env::consts::EXE_SUFFIX));
    let library = library_folder();
    let mut command = compiler(language);
    command.args(["-g", "-O1"]);
    if sanitize {
        command.args(SANITIZERS);
    }
    command.arg(source).arg("-o").arg(&program).arg("-L").arg(&library).args(["-ldoppler", "-lpthread"]);
    command.arg(format!("-Wl,-rpath,{}", library.display()));
    finish(command, &format!("compiling {stem}{}", if sanitize { " (sanitized)" } else { "" }), true);
    program
}

/// Cargo's search path for libraries goes before the program's own, and may lead to an older library.
fn at_the_fresh_library(command: &mut Command) {
    for variable in ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"] {
        command.env_remove(variable);
    }
}

fn run(program: &Path, arguments: &[&str], sanitized: bool) -> String {
    let name = program.file_name().and_then(|n| n.to_str()).expect("a file name").to_string();
    let runner = std::env::var("RUNNER").ok().filter(|r| !sanitized && !r.trim().is_empty());
    let mut command = match &runner {
        Some(runner) => {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().expect("a runner"));
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    at_the_fresh_library(&mut command);
    if std::env::var_os("ASAN_OPTIONS").is_none() {
        // What some drivers keep until the process ends is not a leak of the program.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
    }
    command.args(arguments);
    String::from_utf8_lossy(&finish(command, &format!("running {name}"), true).stdout).into_owned()
}

/// Compiles and runs a program of this folder, plain and sanitized.
fn check(file: &str) {
    let source = root().join("tests/c_api").join(file);
    let language = if file.ends_with(".cpp") { Language::Cpp17 } else { Language::C99 };
    for sanitize in [false, true] {
        let program = build(&source, language, sanitize);
        let folder = program.with_extension("d");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let (model, folder) = (model(), folder.display().to_string());
        run(&program, &[model.to_str().expect("UTF-8"), &folder], sanitize);
    }
}

macro_rules! programs {
    ($($name:ident: $file:literal),* $(,)?) => {
        $(#[test] fn $name() { check($file); })*

        #[test]
        fn every_program_is_listed() {
            let mut listed = vec![$($file.to_string()),*];
            listed.sort();
            let mut found = Vec::new();
            for (folder, prefix) in [("tests/c_api", ""), ("tests/c_api/c", "c/")] {
                for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
                    let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
                    if name.ends_with(".c") || name.ends_with(".cpp") { found.push(format!("{prefix}{name}")); }
                }
            }
            found.sort();
            assert_eq!(found, listed);
        }
    };
}

programs! {
    lifecycle: "c/lifecycle.c",
    nulls: "c/nulls.c",
    sizes: "c/sizes.c",
    free_order: "c/free_order.c",
    bad_files: "c/bad_files.c",
    context_full: "c/context_full.c",
    threads: "c/threads.c",
    callbacks: "c/callbacks.c",
    text: "c/text.c",
    chat: "c/chat.c",
    eval: "c/eval.c",
    choose: "c/choose.c",
    embed: "c/embed.c",
    fork: "c/fork.c",
    lora: "c/lora.c",
    many: "c/many.c",
    observe: "c/observe.c",
    speculate: "c/speculate.c",
    wrapper: "wrapper.cpp",
}

/// The headers stand alone, twice over, in every language they are for.
#[test]
fn headers_compile_alone() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (header, language) in [
        ("doppler.h", Language::C99),
        ("doppler.h", Language::C11),
        ("doppler.h", Language::Cpp17),
        ("doppler.hpp", Language::Cpp17),
    ] {
        let extension = if language == Language::Cpp17 { "cpp" } else { "c" };
        let source = folder.join(format!("alone-{header}.{extension}"));
        std::fs::write(&source, format!("#include <{header}>\n#include <{header}>\nint main(void) {{ return 0; }}\n"))
            .expect("a source");
        let mut command = compiler(language);
        command.arg("-fsyntax-only").arg(&source);
        finish(command, &format!("header {header} {extension} {}", language as u8), true);
    }
}

#[test]
fn examples() {
    let path = model();
    let model = path.to_str().expect("UTF-8");
    for sanitize in [false, true] {
        let minimal = build(&root().join("examples/c/embed_minimal.c"), Language::C99, sanitize);
        assert!(run(&minimal, &[model], sanitize).len() > 3);
        let generate = build(&root().join("examples/c/generate.c"), Language::C99, sanitize);
        let talk = run(&generate, &[model], sanitize);
        assert!(talk.contains("coppers") && talk.contains("decode") && talk.contains("tokens/s"), "{talk}");
        let text = run(&generate, &[model, "Once upon", "a time"], sanitize);
        assert!(text.starts_with("Once upon a time"), "{text}");
        let chat = build(&root().join("examples/cpp/chat.cpp"), Language::Cpp17, sanitize);
        assert!(run(&chat, &[model], sanitize).contains("tokens/s"));
    }
}

/// Errors of the example reach the shell, with name and text.
#[test]
fn an_example_that_fails_says_why() {
    let program = build(&root().join("examples/c/generate.c"), Language::C11, false);
    let mut command = Command::new(program);
    at_the_fresh_library(&mut command);
    command.arg("/no/such/model.gguf");
    let output = finish(command, "running generate without a model", false);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("DOPPLER_STATUS_IO") && text.contains("/no/such/model.gguf"), "{text}");
}
