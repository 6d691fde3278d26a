//! The `doppler` program: the library from a command line. Everything it does goes through the crate's public Rust API.

#![deny(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
