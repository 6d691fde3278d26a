//! Statuses, and how errors become them.

use std::ffi::{CStr, c_char};

use crate::error::Error;

/// What a function answers. The numbers are permanent; newer libraries may add some, so treat an unknown one as a failure.
/// doppler_last_error() has the text that belongs to a failure.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum doppler_status {
    /// Done.
    Ok = 0,
    /// An argument is outside what the function accepts.
    InvalidArgument = 1,
    /// The call is not allowed now: the session is in the middle of another call, or has nothing to continue.
    InvalidState = 2,
    /// A file could not be opened, read or mapped.
    Io = 3,
    /// A file's bytes break its format.
    BadFile = 4,
    /// Well formed, but more than this version can do.
    Unsupported = 5,
    /// No adapter satisfies the request.
    NoAdapter = 6,
    /// The device, the host, or the memory budget has no room.
    OutOfMemory = 7,
    /// The device is gone: destroy everything made from its context.
    DeviceLost = 8,
    /// The device rejected a command or a shader: a defect of this library or of the driver.
    Gpu = 9,
    /// A guard in strict mode refused a readback, or found a budget broken.
    Guard = 10,
    /// The tokens do not fit in the session's context. Nothing was changed: truncate or reset, or append less.
    ContextFull = 11,
    /// A callback or doppler_session_cancel() ended the call.
    Cancelled = 12,
    /// The model's chat template failed.
    Template = 13,
    /// A defect of this library.
    Internal = 14,
    /// A tensor holds NaN, an infinity or a value beyond the limit of the session's probe, which asked for this check.
    NotFinite = 15,
    /// A pointer that must not be NULL is NULL.
    NullPointer = 100,
    /// A defect of this library, caught before it could end the process. The object may be left unusable.
    Panic = 101,
    /// A structure's `struct_size` is too small, or it has fields that this library does not know and that are not zero.
    BadStructSize = 102,
    /// The handle is not of this kind, or its object was destroyed.
    BadHandle = 103,
    /// A buffer is too small. Where the function has a `needed` output, it says how much is enough.
    BufferTooSmall = 104,
    /// A text is not valid UTF-8.
    BadUtf8 = 105,
}

use doppler_status as S;

const NAMES: [(S, &CStr); 22] = [
    (S::Ok, c"DOPPLER_STATUS_OK"),
    (S::InvalidArgument, c"DOPPLER_STATUS_INVALID_ARGUMENT"),
    (S::InvalidState, c"DOPPLER_STATUS_INVALID_STATE"),
    (S::Io, c"DOPPLER_STATUS_IO"),
    (S::BadFile, c"DOPPLER_STATUS_BAD_FILE"),
    (S::Unsupported, c"DOPPLER_STATUS_UNSUPPORTED"),
    (S::NoAdapter, c"DOPPLER_STATUS_NO_ADAPTER"),
    (S::OutOfMemory, c"DOPPLER_STATUS_OUT_OF_MEMORY"),
    (S::DeviceLost, c"DOPPLER_STATUS_DEVICE_LOST"),
    (S::Gpu, c"DOPPLER_STATUS_GPU"),
    (S::Guard, c"DOPPLER_STATUS_GUARD"),
    (S::ContextFull, c"DOPPLER_STATUS_CONTEXT_FULL"),
    (S::Cancelled, c"DOPPLER_STATUS_CANCELLED"),
    (S::Template, c"DOPPLER_STATUS_TEMPLATE"),
    (S::Internal, c"DOPPLER_STATUS_INTERNAL"),
    (S::NotFinite, c"DOPPLER_STATUS_NOT_FINITE"),
    (S::NullPointer, c"DOPPLER_STATUS_NULL_POINTER"),
    (S::Panic, c"DOPPLER_STATUS_PANIC"),
    (S::BadStructSize, c"DOPPLER_STATUS_BAD_STRUCT_SIZE"),
    (S::BadHandle, c"DOPPLER_STATUS_BAD_HANDLE"),
    (S::BufferTooSmall, c"DOPPLER_STATUS_BUFFER_TOO_SMALL"),
    (S::BadUtf8, c"DOPPLER_STATUS_BAD_UTF8"),
];

/// The name of a status, such as "DOPPLER_STATUS_OK"; "DOPPLER_STATUS_UNKNOWN" for a number that this library does not have.
/// The text is never freed. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_status_name(status: u32) -> *const c_char {
    let known = NAMES.iter().find(|(s, _)| *s as u32 == status);
    known.map_or(c"DOPPLER_STATUS_UNKNOWN", |(_, name)| name).as_ptr()
}

/// Why a C function failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: doppler_status,
    pub(crate) text: String,
}

/// Result of everything inside a guarded body.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: doppler_status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn null(what: &str) -> Self {
        Self::new(S::NullPointer, format!("{what} is NULL"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::InvalidArgument(_) => S::InvalidArgument,
            Error::InvalidState(_) => S::InvalidState,
            Error::Io(_) => S::Io,
            Error::BadFile(_) => S::BadFile,
            Error::Unsupported(_) => S::Unsupported,
            Error::NoAdapter(_) => S::NoAdapter,
            Error::OutOfMemory(_) => S::OutOfMemory,
            Error::DeviceLost(_) => S::DeviceLost,
            Error::Gpu(_) => S::Gpu,
            Error::Guard(_) => S::Guard,
            Error::ContextFull(_) => S::ContextFull,
            Error::Cancelled(_) => S::Cancelled,
            Error::NotFinite(_) => S::NotFinite,
            Error::Template(_) => S::Template,
            Error::Internal(_) => S::Internal,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_known() {
        let mut numbers: Vec<u32> = NAMES.iter().map(|(s, _)| *s as u32).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), NAMES.len());
        // SAFETY: the function gives static texts.
        let name = |n| unsafe { CStr::from_ptr(doppler_status_name(n)) };
        assert_eq!(name(104), c"DOPPLER_STATUS_BUFFER_TOO_SMALL");
        assert_eq!(name(99), c"DOPPLER_STATUS_UNKNOWN");
    }
}
