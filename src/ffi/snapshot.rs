//! Sessions from sessions: forks and snapshots.

use std::ffi::c_void;

use crate::ffi::guard;
use crate::ffi::session::{Object, SESSIONS, doppler_session};
use crate::ffi::status::{Failure, doppler_status};
use crate::ffi::structs::slot;
use crate::ffi::text::{buffer_out, slice_in};

/// Creates a session that goes on from where another one is: with the same tokens, conversation, adapters and options. What was evaluated is
/// shared, not copied, and not evaluated again; from then on the two are independent. The cache makes room for what the new one may
/// still come to hold. Its statistics start at zero.
///
/// @param session      stays as it is
/// @param new_session  gets the handle; end it with doppler_session_destroy()
/// @return             DOPPLER_STATUS_INVALID_STATE while `session` generates, DOPPLER_STATUS_OUT_OF_MEMORY
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_fork(
    session: *mut doppler_session,
    new_session: *mut *mut doppler_session,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the pointer.
        let out = unsafe { slot(new_session, "new_session")? };
        let forked = object.enter()?.fork()?;
        out.write(Object::publish(forked));
        Ok(())
    })
}

/// Writes a session to bytes: its tokens, its conversation and what was evaluated. doppler_session_restore() takes them back, in any session of
/// the same model file loaded with the same `kv_type`, in this process or another. Options and statistics are no part of it; of LoRA adapters it says which
/// they were, and the other session must have the same ones.
///
/// @param buffer    gets the bytes; NULL (with `capacity` 0) to ask for the size, which reads nothing from the device
/// @param capacity  bytes that fit
/// @param size      gets the bytes of the snapshot, also when they do not fit; may be NULL
/// @return          DOPPLER_STATUS_BUFFER_TOO_SMALL (nothing but `size` is written), DOPPLER_STATUS_INVALID_STATE while generating,
///                  DOPPLER_STATUS_OUT_OF_MEMORY
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_snapshot(
    session: *const doppler_session,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        // SAFETY: the caller vouches for the buffer.
        let out = unsafe { buffer_out(buffer.cast::<u8>(), capacity, size)? };
        let session = object.enter()?;
        if out.wants(usize::try_from(session.snapshot_bytes()?).unwrap_or(usize::MAX))? {
            out.fill(&session.snapshot()?)?;
        }
        Ok(())
    })
}

/// Makes a session what another one was when doppler_session_snapshot() wrote these bytes: it goes on exactly as that one did.
///
/// @param data  the bytes; only read during the call
/// @param size  how many
/// @return      DOPPLER_STATUS_INVALID_ARGUMENT for bytes that are no snapshot, are damaged, or belong to another model or other adapters (the error text
///              says which), DOPPLER_STATUS_CONTEXT_FULL if their tokens do not fit, DOPPLER_STATUS_INVALID_STATE while generating: the session is
///              then as it was
///
/// Threads: one at a time for each session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_session_restore(
    session: *mut doppler_session,
    data: *const c_void,
    size: usize,
) -> doppler_status {
    guard(|| {
        let object = SESSIONS.get(session)?;
        if data.is_null() {
            return Err(Failure::null("data"));
        }
        // SAFETY: the caller vouches for the bytes.
        let bytes = unsafe { slice_in(data.cast::<u8>(), size, "data")? };
        Ok(object.enter()?.restore(bytes)?)
    })
}
