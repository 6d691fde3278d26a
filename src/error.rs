//! The one error type of the library, and its `Result`.
//!
//! Every variant carries what a caller needs to act: the file, tensor, key or argument at fault.
//! The variants map one to one onto the C statuses (`src/ffi/status.rs`); text is for people,
//! the variant is for programs.

/// Result of every fallible function in the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a kind a program can test and a text a person can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside what the function accepts; names the argument.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The call is not allowed in the object's present state (generating while generating, say).
    #[error("invalid state: {0}")]
    InvalidState(String),
    /// A file could not be opened, read or mapped; names the file.
    #[error("{0}")]
    Io(String),
    /// A file's bytes break its format; names the file and the key, tensor or offset.
    #[error("{0}")]
    BadFile(String),
    /// The file or request is well formed, but this version cannot run it; names what is missing.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// No adapter satisfies the request; says what was found.
    #[error("no usable adapter: {0}")]
    NoAdapter(String),
    /// The device or the host has no memory left for what was asked.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device is gone; every object made from it answers with this until destroyed.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The device rejected a command or a shader (a defect of this library or of the driver).
    #[error("gpu error: {0}")]
    Gpu(String),
    /// A guard in strict mode refused a readback or found a budget broken; says which and why.
    #[error("guard: {0}")]
    Guard(String),
    /// The context of a sequence is full; nothing was lost, truncate or reset to go on.
    #[error("context full: {0}")]
    ContextFull(String),
    /// The caller's callback or cancel call ended the operation.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// A tensor holds NaN, an infinity or a value beyond a limit, where a check was asked for; names point, layer and position.
    #[error("not finite: {0}")]
    NotFinite(String),
    /// A chat template failed; carries the template's own message.
    #[error("chat template: {0}")]
    Template(String),
    /// A defect of this library.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// Puts `context` (a file name, say) before the message, keeping the kind.
    #[must_use]
    pub fn within(self, context: &str) -> Self {
        use Error as E;
        let join = |m: String| format!("{context}: {m}");
        match self {
            E::InvalidArgument(m) => E::InvalidArgument(join(m)),
            E::InvalidState(m) => E::InvalidState(join(m)),
            E::Io(m) => E::Io(join(m)),
            E::BadFile(m) => E::BadFile(join(m)),
            E::Unsupported(m) => E::Unsupported(join(m)),
            E::NoAdapter(m) => E::NoAdapter(join(m)),
            E::OutOfMemory(m) => E::OutOfMemory(join(m)),
            E::DeviceLost(m) => E::DeviceLost(join(m)),
            E::Gpu(m) => E::Gpu(join(m)),
            E::Guard(m) => E::Guard(join(m)),
            E::ContextFull(m) => E::ContextFull(join(m)),
            E::Cancelled(m) => E::Cancelled(join(m)),
            E::NotFinite(m) => E::NotFinite(join(m)),
            E::Template(m) => E::Template(join(m)),
            E::Internal(m) => E::Internal(join(m)),
        }
    }
}

/// `Err(Error::$kind(format!(…)))`, the usual way out of a function.
macro_rules! bail {
    ($kind:ident, $($arg:tt)*) => { return Err($crate::error::Error::$kind(format!($($arg)*))) };
}
pub(crate) use bail;
