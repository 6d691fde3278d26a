//! How a verb ends.

use std::io;

/// The result of a verb or of a part of it.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

/// Why a verb did not finish.
#[derive(Debug)]
pub(super) enum Failure {
    /// Said on stderr; exit code 1.
    Message(String),
    /// The arguments make no sense together; exit code 2.
    Usage(String),
    /// Said already, such as a failed check; exit code 1.
    Reported,
    /// Nobody reads stdout any more; ends quietly.
    Pipe,
}

impl From<doppler::Error> for Failure {
    fn from(e: doppler::Error) -> Self {
        Failure::Message(e.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::BrokenPipe => Failure::Pipe,
            _ => Failure::Message(e.to_string()),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        match e.io_error_kind() {
            Some(io::ErrorKind::BrokenPipe) => Failure::Pipe,
            _ => Failure::Message(e.to_string()),
        }
    }
}
