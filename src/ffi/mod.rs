//! The C ABI: `include/doppler.h` is generated from this folder.
//!
//! Bodies convert, call the session layer, and convert back; policy is elsewhere. The contract, which every function keeps:
//!
//! - Every fallible function runs inside [`guard`], a function, so that rustfmt, cbindgen and debuggers see plain code. It catches
//!   panics, stores the thread's error text, and returns the status.
//! - **Handles are names, not addresses.** What C holds as `doppler_session *` is a number that is looked up in a table
//!   ([`handle`]) and never dereferenced. So a handle that was destroyed, or is of another kind, gets
//!   `DOPPLER_STATUS_BAD_HANDLE`, and an object that is destroyed during one of its calls lives until that call returns.
//! - Structures that can grow carry their size ([`structs`]). Enums arrive as `uint32_t` and are converted, flags are `uint32_t` and true
//!   when not zero: no value that C can pass is undefined behaviour in a Rust type.
//! - Outputs are checked before any work, and written only on success ([`text`] has the one exception, `needed`).
//! - `unsafe` happens where a pointer from C becomes a Rust value; that value is then safe to use.

#![allow(non_camel_case_types, reason = "types carry their C names")]
#![allow(clippy::missing_safety_doc, reason = "cbindgen copies docs to the header: they are written for C readers")]

use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub mod adapter;
pub mod budget;
pub mod chat;
pub mod context;
pub mod embed;
pub mod generate;
pub mod generate_many;
mod handle;
pub mod lora;
pub mod model;
pub mod model_stats;
pub mod probe;
pub mod report;
pub mod score;
pub mod session;
pub mod snapshot;
pub mod stats;
pub mod status;
mod structs;
mod text;

use status::{Failure, Result, doppler_status};

/// The number that `doppler_abi_version` gives: raised when a program built for an older header could break.
pub const ABI_VERSION: u32 = 1;

/// "None" where an index or a token is expected: no adapter index, no token, no stop string.
pub const DOPPLER_NONE: u32 = u32::MAX;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of a C function: its error or panic becomes a status, and the text of `doppler_last_error`.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> doppler_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return doppler_status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::new(doppler_status::Panic, panic_text(panic)),
    };
    // A thread that is shutting down has no place for the text any more; the status still tells.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = failure.text);
    failure.status
}

/// The text of a panic. The payload is forgotten where it is no text: its destructor might panic again.
fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (_, Some(text)) => text.clone(),
        _ => {
            std::mem::forget(panic);
            "no text".to_string()
        }
    };
    format!("the library panicked: {text}")
}

/// The version of the ABI that this library has; `DOPPLER_ABI_VERSION` is the one the header was made for.
/// They must be equal. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_abi_version() -> u32 {
    ABI_VERSION
}

/// The version of this library as text, such as "0.1.0". The text is never freed. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn doppler_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The text of the latest failure on the calling thread (empty if there was none): which file, argument or limit, for people to read.
/// A call that succeeds leaves it as it is.
///
/// @param buffer    gets the text, NUL-terminated, UTF-8, cut at a character border if it does not fit; may be NULL
/// @param capacity  bytes in `buffer`
/// @return          bytes that the whole text takes, its NUL included
///
/// Threads: any; each has its own text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_last_error(buffer: *mut c_char, capacity: usize) -> usize {
    let copy = |text: &str| {
        // SAFETY: the caller vouches for `capacity` writable bytes at `buffer`.
        unsafe { text::copy_cut(text, buffer, capacity) };
        text.len() + 1
    };
    LAST_ERROR.try_with(|last| copy(&last.borrow())).unwrap_or_else(|_| copy(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        LAST_ERROR.with(|last| last.borrow().clone())
    }

    #[test]
    fn guard_turns_panics_and_errors_into_statuses() {
        assert_eq!(guard(|| Ok(())), doppler_status::Ok);
        assert_eq!(guard(|| panic!("number {}", 7)), doppler_status::Panic);
        assert_eq!(last_error(), "the library panicked: number 7");
        assert_eq!(guard(|| panic!("plain")), doppler_status::Panic);
        assert_eq!(guard(|| std::panic::panic_any(5)), doppler_status::Panic);
        assert_eq!(last_error(), "the library panicked: no text");
        let status = guard(|| Err(crate::Error::Io("x.gguf: gone".into()).into()));
        assert_eq!((status, last_error().as_str()), (doppler_status::Io, "x.gguf: gone"));
        assert_eq!(guard(|| Ok(())), doppler_status::Ok);
        assert_eq!(last_error(), "x.gguf: gone");
    }

    #[test]
    fn last_error_is_cut_at_a_character() {
        guard(|| Err(crate::Error::Io("aé".into()).into()));
        let mut buffer = [0x7f as c_char; 4];
        // SAFETY: the capacities are within the buffer.
        let needed = unsafe {
            assert_eq!(doppler_last_error(std::ptr::null_mut(), 9), 4);
            doppler_last_error(buffer.as_mut_ptr(), 3)
        };
        assert_eq!((needed, buffer[0] as u8, buffer[1], buffer[2]), (4, b'a', 0, 0x7f));
    }
}
