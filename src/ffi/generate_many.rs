//! Generating in several sessions together.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ops::ControlFlow;
use std::time::Instant;

use crate::ffi::generate::{
    Listener, convert, doppler_generate_options, doppler_generate_result, doppler_token_event, report,
};
use crate::ffi::session::{SESSIONS, doppler_session};
use crate::ffi::status::{Failure, Result, doppler_status};
use crate::ffi::structs::{Output, output, read};
use crate::ffi::text::slice_in;
use crate::ffi::{DOPPLER_NONE, guard};
use crate::session::{GenerateOptions, Session, generate_together};

/// Hears each token of several generations, on the thread that generates; `session` is the place of its session in the call. Not 0 ends that
/// session's generation (reason CALLBACK); else as doppler_token_callback.
pub type doppler_many_token_callback =
    Option<unsafe extern "C" fn(user: *mut c_void, session: usize, event: *const doppler_token_event) -> c_int>;

/// Generates in several sessions of one model together, each as doppler_session_generate() would, and returns when all have ended. Prompts are
/// evaluated one after the other; then each submit draws for all sessions that still run, and the weights are read once for all of them. A
/// session that ends leaves the others at the next submit. As many tokens come from a submit as the session with the smallest
/// `tokens_per_submit` takes.
///
/// A session that fails does not end the others: they run to their ends first. Each session counts the submits that it took part in.
///
/// @param sessions    different sessions of one model, any number; up to 32 share a submit
/// @param n_sessions  how many; with 0 nothing happens
/// @param options     one for each session, in its order; an entry, or the list, may be NULL: defaults
/// @param on_token    hears each token; may be NULL
/// @param user        handed to `on_token`
/// @param results     one for each session, filled in where its generation succeeded; set each `struct_size`. An entry, or the list, may be NULL
/// @param statuses    one for each session, what its doppler_session_generate() would return; may be NULL
/// @return            the status of the first session that failed, if one did; doppler_last_error() then says which and why. Without having
///                    generated: DOPPLER_STATUS_INVALID_ARGUMENT for sessions of several models, DOPPLER_STATUS_INVALID_STATE for a session that is
///                    in the middle of a call or in the list twice, and what is wrong with options and structures. `statuses` is then left alone.
///
/// Threads: one at a time for each of the sessions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_generate_many(
    sessions: *const *mut doppler_session,
    n_sessions: usize,
    options: *const *const doppler_generate_options,
    on_token: doppler_many_token_callback,
    user: *mut c_void,
    results: *const *mut doppler_generate_result,
    statuses: *mut doppler_status,
) -> doppler_status {
    guard(|| {
        // SAFETY: the caller vouches for the lists; those that may be left out are empty then.
        let (sessions, options, results) = unsafe {
            let given = |list: bool| if list { n_sessions } else { 0 };
            (
                slice_in(sessions, n_sessions, "sessions")?,
                slice_in(options, given(!options.is_null()), "options")?,
                slice_in(results, given(!results.is_null()), "results")?,
            )
        };
        // SAFETY: the caller vouches for what the lists point to.
        let (options, outputs) = unsafe { (all_options(options, n_sessions)?, all_outputs(results, n_sessions)?) };
        let objects = sessions.iter().enumerate().map(|(i, &s)| SESSIONS.get(s).map_err(|e| of_session(i, e)));
        let objects = objects.collect::<Result<Vec<_>>>()?;
        let entered = objects.iter().enumerate().map(|(i, o)| o.enter().map_err(|e| of_session(i, e)));
        let mut entered = entered.collect::<Result<Vec<_>>>()?;
        let mut sessions: Vec<&mut Session> = entered.iter_mut().map(|s| &mut **s).collect();
        let mut tell = |i: usize, event: &doppler_token_event| match on_token {
            // SAFETY: the caller vouches for the function, and that it takes its own `user`.
            Some(function) => unsafe { function(user, i, event) },
            None => 0,
        };
        let mut first = None;
        for (i, (done, output)) in run(&mut sessions, &options, &mut tell)?.into_iter().zip(outputs).enumerate() {
            let status = match done {
                Ok(result) => {
                    if let Some(output) = output {
                        output.write(result);
                    }
                    doppler_status::Ok
                }
                Err(e) => {
                    let status = e.status;
                    first.get_or_insert(of_session(i, e));
                    status
                }
            };
            if !statuses.is_null() {
                // SAFETY: the caller vouches for room for one status a session.
                unsafe { statuses.add(i).write_unaligned(status) };
            }
        }
        first.map_or(Ok(()), Err)
    })
}

/// A failure, with the session that it is of.
fn of_session(i: usize, failure: Failure) -> Failure {
    Failure::new(failure.status, format!("sessions[{i}]: {}", failure.text))
}

/// # Safety
/// The structures, and what they point to, are as `read` and `convert` ask.
unsafe fn all_options(given: &[*const doppler_generate_options], n: usize) -> Result<Vec<GenerateOptions>> {
    let one = |i: usize| {
        let options = given.get(i).copied().unwrap_or(std::ptr::null());
        // SAFETY: passed on.
        unsafe { read(options, doppler_generate_options::default()).and_then(|o| convert(&o)) }
    };
    (0..n).map(|i| one(i).map_err(|e| Failure::new(e.status, format!("options[{i}]: {}", e.text)))).collect()
}

/// # Safety
/// The structures are as `output` asks.
unsafe fn all_outputs(
    given: &[*mut doppler_generate_result],
    n: usize,
) -> Result<Vec<Option<Output<doppler_generate_result>>>> {
    let one = |i: usize| match given.get(i).filter(|r| !r.is_null()) {
        // SAFETY: passed on.
        Some(&result) => unsafe { output(result).map(Some) },
        None => Ok(None),
    };
    (0..n).map(|i| one(i).map_err(|e| Failure::new(e.status, format!("results[{i}]: {}", e.text)))).collect()
}

fn run(
    sessions: &mut [&mut Session],
    options: &[GenerateOptions],
    tell: &mut dyn FnMut(usize, &doppler_token_event) -> c_int,
) -> Result<Vec<Result<doppler_generate_result>>> {
    let started = Instant::now();
    let before: Vec<_> = sessions.iter().map(|s| s.timings()).collect();
    let tell = RefCell::new(tell);
    let tell = &tell;
    let listener = |i: usize| Listener::new(move |event: &doppler_token_event| (*tell.borrow_mut())(i, event));
    let mut listeners: Vec<_> = (0..sessions.len()).map(listener).collect();
    let all = generate_together(sessions, options, &mut |i, event| match listeners.get_mut(i) {
        Some(listener) => listener.hear(event.token, &event.pieces),
        None => ControlFlow::Continue(()),
    })?;
    let mut done = Vec::new();
    for (i, (generated, before)) in all.into_iter().zip(&before).enumerate() {
        done.push(generated.map_err(Failure::from).map(|generated| {
            // As for one session: text held back with no token left to bring it.
            if let Some(listener) = listeners.get_mut(i) {
                let _ = listener.hear(DOPPLER_NONE, &generated.held);
            }
            report(sessions[i], &generated, before, started)
        }));
    }
    Ok(done)
}
