//! Structures that can grow: their first field says how large the caller's version is.
//!
//! Options: a smaller (older) structure gets defaults for the fields it lacks; a larger (newer) one is accepted if what this library does not
//! know is zero. Results: no more is written than the caller has room for, and what this library does not know is zeroed.

use crate::ffi::status::{Failure, Result, doppler_status};

/// Sizes above this are taken for garbage.
const LARGEST: usize = 1 << 16;

/// A structure of the ABI that starts with `struct_size: usize`.
///
/// # Safety
/// `#[repr(C)]`, the first field as said, and every bit pattern is a valid value (numbers, raw pointers, optional functions).
pub(crate) unsafe trait Versioned: Copy {
    /// Name, for messages.
    const NAME: &'static str;
    /// End of the last field of the first version that was released: it stays when fields are added.
    const FIRST: usize;
}

fn check_size<T: Versioned>(size: usize) -> Result<()> {
    if (T::FIRST..=LARGEST).contains(&size) {
        return Ok(());
    }
    let text = format!("{}: struct_size is {size}, {} or more was expected", T::NAME, T::FIRST);
    Err(Failure::new(doppler_status::BadStructSize, text))
}

/// Reads the caller's options; NULL gives the defaults.
///
/// # Safety
/// `from` is NULL or points to as many readable bytes as its first field says (at least that field).
pub(crate) unsafe fn read<T: Versioned>(from: *const T, defaults: T) -> Result<T> {
    if from.is_null() {
        return Ok(defaults);
    }
    // SAFETY: the first field is readable (caller); no alignment is assumed.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    let known = size_of::<T>();
    if size > known {
        // SAFETY: the caller vouches for `size` readable bytes.
        let tail = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
        if tail.iter().any(|&b| b != 0) {
            let text = format!(
                "{}: a structure of {size} bytes sets fields that this library ({known} bytes) does not know",
                T::NAME
            );
            return Err(Failure::new(doppler_status::BadStructSize, text));
        }
    }
    let mut options = defaults;
    // SAFETY: at most `size` bytes are read and `size_of::<T>()` written, and T is valid for every bit pattern.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut options).cast::<u8>(), size.min(known)) };
    Ok(options)
}

/// Fills the caller's structure of `size` bytes with `values`, and sets its first field.
///
/// # Safety
/// `to` is NULL or points to `size` writable bytes.
pub(crate) unsafe fn init<T: Versioned>(to: *mut T, size: usize, values: T) -> Result<()> {
    if to.is_null() {
        return Err(Failure::null(T::NAME));
    }
    check_size::<T>(size)?;
    Output { to, size }.write(values);
    Ok(())
}

/// A place for a result structure, checked.
#[derive(Debug)]
pub(crate) struct Output<T> {
    to: *mut T,
    size: usize,
}

/// Checks the caller's result structure, before any work.
///
/// # Safety
/// `to` is NULL or points to as many writable bytes as its first field says, and stays so until the [`Output`] is gone.
pub(crate) unsafe fn output<T: Versioned>(to: *mut T) -> Result<Output<T>> {
    if to.is_null() {
        return Err(Failure::null(T::NAME));
    }
    // SAFETY: the first field is readable (caller); no alignment is assumed.
    let size = unsafe { to.cast::<usize>().read_unaligned() };
    check_size::<T>(size)?;
    Ok(Output { to, size })
}

impl<T: Versioned> Output<T> {
    /// Writes what the caller has room for; the first field keeps the caller's size.
    pub(crate) fn write(self, values: T) {
        let known = self.size.min(size_of::<T>());
        // SAFETY: `to` has `size` writable bytes, by the contract of the function that made this; the first field is within them.
        unsafe {
            let bytes = self.to.cast::<u8>();
            std::ptr::copy_nonoverlapping((&raw const values).cast::<u8>(), bytes, known);
            std::ptr::write_bytes(bytes.add(known), 0, self.size - known);
            self.to.cast::<usize>().write_unaligned(self.size);
        }
    }
}

/// A place for a plain result, checked.
#[derive(Debug)]
pub(crate) struct Slot<T>(*mut T);

/// Checks the caller's place for a result, before any work.
///
/// # Safety
/// `to` is NULL or may be written, and stays so until the [`Slot`] is gone.
pub(crate) unsafe fn slot<T>(to: *mut T, name: &str) -> Result<Slot<T>> {
    if to.is_null() { Err(Failure::null(name)) } else { Ok(Slot(to)) }
}

/// As [`slot`], for a result that the caller may leave out.
///
/// # Safety
/// As [`slot`].
pub(crate) unsafe fn optional_slot<T>(to: *mut T) -> Slot<T> {
    Slot(to)
}

impl<T> Slot<T> {
    /// Writes the result.
    pub(crate) fn write(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: writable by the contract of the function that made this; no alignment is assumed.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Options {
        struct_size: usize,
        old: u64,
        new: u64,
    }

    // SAFETY: `repr(C)`, numbers only.
    unsafe impl Versioned for Options {
        const NAME: &'static str = "options";
        const FIRST: usize = 16;
    }

    #[repr(C)]
    struct Newer {
        options: Options,
        newest: u64,
    }

    const DEFAULTS: Options = Options { struct_size: 24, old: 1, new: 2 };

    #[test]
    fn options_of_other_versions_are_read() {
        let given = |size| Options { struct_size: size, old: 7, new: 8 };
        let [plain, bent] = [0, 1].map(|newest| Newer { options: given(32), newest });
        // SAFETY: every size is at most that of the structure behind it, but for those that are refused.
        unsafe {
            assert_eq!(read(std::ptr::null(), DEFAULTS).unwrap(), DEFAULTS);
            assert_eq!(read(&given(24), DEFAULTS).unwrap().new, 8);
            let old = read(&given(16), DEFAULTS).unwrap();
            assert_eq!((old.old, old.new), (7, 2));
            assert_eq!(read((&raw const plain).cast(), DEFAULTS).unwrap().new, 8);
            for bad in [0, 8, 15, LARGEST + 1, usize::MAX] {
                assert_eq!(read(&given(bad), DEFAULTS).unwrap_err().status, doppler_status::BadStructSize);
            }
            let refused = read((&raw const bent).cast(), DEFAULTS).unwrap_err();
            assert_eq!(refused.status, doppler_status::BadStructSize);
        }
    }

    #[test]
    fn results_of_other_versions_are_written() {
        let mut newer = Newer { options: Options { struct_size: 32, old: 0, new: 0 }, newest: 9 };
        let mut older = Options { struct_size: 16, old: 0, new: 99 };
        // SAFETY: the sizes are those of the structures, or less.
        unsafe {
            output((&raw mut newer).cast::<Options>()).unwrap().write(DEFAULTS);
            output(&raw mut older).unwrap().write(DEFAULTS);
            assert!(output::<Options>(std::ptr::null_mut()).is_err());
            assert!(init(&raw mut older, 8, DEFAULTS).is_err());
        }
        assert_eq!((newer.options.new, newer.newest, newer.options.struct_size), (2, 0, 32));
        assert_eq!((older.old, older.new, older.struct_size), (1, 99, 16));
    }
}
