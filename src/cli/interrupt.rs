//! Ctrl-C: it cancels the reply under way, and ends the program where there is none.

use doppler::session::CancelHandle;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static HANDLE: OnceLock<CancelHandle> = OnceLock::new();
static BUSY: AtomicBool = AtomicBool::new(false);

/// Ctrl-C reaches this session from now on. On Windows it ends the program as it always does.
#[allow(unsafe_code, reason = "setting a signal handler is a system call")]
pub(super) fn watch(handle: CancelHandle) {
    if HANDLE.set(handle).is_err() {
        return;
    }
    #[cfg(unix)]
    {
        let handler = on_interrupt as extern "C" fn(libc::c_int);
        // SAFETY: the handler does only what a signal handler may: atomic loads and stores, and `_exit`.
        unsafe {
            libc::signal(libc::SIGINT, handler as libc::sighandler_t);
        }
    }
}

/// Says whether a reply is under way.
pub(super) fn busy(now: bool) {
    BUSY.store(now, Ordering::SeqCst);
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "ending the program from a signal handler is a system call")]
extern "C" fn on_interrupt(_signal: libc::c_int) {
    match HANDLE.get() {
        Some(handle) if BUSY.load(Ordering::SeqCst) => handle.cancel(),
        // SAFETY: `_exit` may be called from a signal handler.
        _ => unsafe { libc::_exit(130) },
    }
}
