//! The tables behind the opaque handles.
//!
//! A handle is a number made to look like a pointer: a serial, never given out twice, and a tag for its kind. Looking it up takes a
//! reference, so an object destroyed while it is in use lives until the last use ends. A lookup costs well under a microsecond.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ffi::status::{Failure, Result, doppler_status};

const TAG_BITS: u32 = 3;
static NEXT_SERIAL: AtomicUsize = AtomicUsize::new(1);

/// The living objects `T` whose handles C sees as `H *`.
pub(crate) struct Table<H, T> {
    kind: &'static str,
    tag: usize,
    live: Mutex<BTreeMap<usize, Arc<T>>>,
    handle: PhantomData<fn() -> H>,
}

impl<H, T> Table<H, T> {
    /// `tag` is the kind's own number, below 8.
    pub(crate) const fn new(kind: &'static str, tag: usize) -> Self {
        Self { kind, tag, live: Mutex::new(BTreeMap::new()), handle: PhantomData }
    }

    /// The map is valid after each of its operations, so a panic elsewhere does not spoil it.
    fn live(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<T>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names an object.
    pub(crate) fn insert(&self, object: T) -> *mut H {
        let serial = NEXT_SERIAL.fetch_add(1, Ordering::Relaxed);
        let number = (serial << TAG_BITS) | self.tag;
        self.live().insert(number, Arc::new(object));
        std::ptr::without_provenance_mut(number)
    }

    /// The object of a handle.
    pub(crate) fn get(&self, handle: *const H) -> Result<Arc<T>> {
        if handle.is_null() {
            return Err(Failure::null(self.kind));
        }
        self.live().get(&handle.addr()).cloned().ok_or_else(|| self.unknown())
    }

    /// Takes an object out; `None` for NULL.
    pub(crate) fn remove(&self, handle: *const H) -> Result<Option<Arc<T>>> {
        if handle.is_null() {
            return Ok(None);
        }
        // The lock is given back before the object is dropped.
        let object = self.live().remove(&handle.addr());
        object.map(Some).ok_or_else(|| self.unknown())
    }

    fn unknown(&self) -> Failure {
        let text = format!("not a {} handle, or its {} was destroyed", self.kind, self.kind);
        Failure::new(doppler_status::BadHandle, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_and_foreign_handles_are_refused() {
        static A: Table<u8, String> = Table::new("a", 1);
        static B: Table<u16, String> = Table::new("b", 2);
        let a = A.insert("x".into());
        let held = A.get(a).unwrap();
        assert_eq!(B.get(a.cast()).unwrap_err().status, doppler_status::BadHandle);
        assert!(A.remove(a).unwrap().is_some());
        assert_eq!(A.get(a).unwrap_err().status, doppler_status::BadHandle);
        assert_eq!(A.remove(a).unwrap_err().status, doppler_status::BadHandle);
        assert!(A.remove(std::ptr::null()).unwrap().is_none());
        assert_eq!(A.get(std::ptr::null()).unwrap_err().status, doppler_status::NullPointer);
        assert_eq!(*held, "x");
        assert_ne!(A.insert("y".into()), a);
    }
}
