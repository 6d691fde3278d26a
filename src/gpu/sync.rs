//! Locks.

pub(crate) use std::sync::MutexGuard;

/// `std::sync::Mutex` without poisoning: a panic in one call must not disable the handle for all later ones, and
/// every critical section here leaves its table valid at each step.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
