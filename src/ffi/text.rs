//! Strings and arrays, in and out.
//!
//! Texts come in as pointer and length, paths and short names NUL-terminated, all UTF-8. Texts and arrays go out to buffers of the caller:
//! `(buffer, capacity, needed)`. `needed` is the one output that is also written when the buffer is too small.

use std::ffi::{CStr, c_char};

use crate::ffi::status::{Failure, Result, doppler_status};
use crate::session::Message;

/// One message of a conversation. Both texts are NUL-terminated UTF-8 and are only read during the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_message {
    /// Who speaks: "system", "user", "assistant", or what else the model's template knows.
    pub role: *const c_char,
    /// What is said.
    pub content: *const c_char,
}

/// An array of the caller; the pointer is not looked at if the length is 0.
///
/// # Safety
/// `from` is NULL or points to `len` valid elements, unchanged during `'a`.
pub(crate) unsafe fn slice_in<'a, T>(from: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::null(name));
    }
    if !from.is_aligned() || len > isize::MAX as usize / size_of::<T>().max(1) {
        let text = format!("{name}: {len} elements, or a pointer that is not aligned");
        return Err(Failure::new(doppler_status::InvalidArgument, text));
    }
    // SAFETY: not NULL, aligned, not too long; the rest is the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(from, len) })
}

/// Several arrays of the caller that stand one after the other, of the lengths given.
///
/// # Safety
/// As [`slice_in`], for all of them together.
pub(crate) unsafe fn lists_in<'a, T>(from: *const T, lengths: &[u32], name: &str) -> Result<Vec<&'a [T]>> {
    let all = lengths.iter().try_fold(0usize, |sum, &n| sum.checked_add(n as usize));
    let Some(all) = all else {
        return Err(Failure::new(doppler_status::InvalidArgument, format!("{name}: the lengths have no sum")));
    };
    // SAFETY: passed on.
    let mut rest = unsafe { slice_in(from, all, name)? };
    let cut = |&n: &u32| {
        let (list, more) = rest.split_at(n as usize);
        rest = more;
        list
    };
    Ok(lengths.iter().map(cut).collect())
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Failure::new(doppler_status::BadUtf8, format!("{name} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// A text of known length.
///
/// # Safety
/// As [`slice_in`].
pub(crate) unsafe fn text_in<'a>(from: *const c_char, len: usize, name: &str) -> Result<&'a str> {
    // SAFETY: passed on.
    utf8(unsafe { slice_in(from.cast::<u8>(), len, name)? }, name)
}

/// A NUL-terminated text.
///
/// # Safety
/// `from` is NULL or points to a NUL-terminated text, unchanged during `'a`.
pub(crate) unsafe fn c_text_in<'a>(from: *const c_char, name: &str) -> Result<&'a str> {
    if from.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL; the rest is the caller's word.
    utf8(unsafe { CStr::from_ptr(from) }.to_bytes(), name)
}

/// An array of NUL-terminated texts.
///
/// # Safety
/// `from` as in [`slice_in`], its elements as in [`c_text_in`].
pub(crate) unsafe fn c_texts_in(from: *const *const c_char, len: usize, name: &str) -> Result<Vec<String>> {
    // SAFETY: passed on.
    let list = unsafe { slice_in(from, len, name)? };
    let each = list.iter().enumerate();
    // SAFETY: passed on.
    each.map(|(i, &t)| Ok(unsafe { c_text_in(t, &format!("{name}[{i}]"))? }.to_string())).collect()
}

/// Messages.
///
/// # Safety
/// `from` as in [`slice_in`], the texts of its elements as in [`c_text_in`].
pub(crate) unsafe fn messages_in(from: *const doppler_message, len: usize) -> Result<Vec<Message>> {
    // SAFETY: passed on.
    let list = unsafe { slice_in(from, len, "messages")? };
    let message = |(i, m): (usize, &doppler_message)| {
        // SAFETY: passed on.
        let (role, content) = unsafe {
            (
                c_text_in(m.role, &format!("messages[{i}].role"))?,
                c_text_in(m.content, &format!("messages[{i}].content"))?,
            )
        };
        Ok(Message::new(role, content))
    };
    list.iter().enumerate().map(message).collect()
}

/// A buffer of the caller for an array or a text, checked.
#[derive(Debug)]
pub(crate) struct BufferOut<T> {
    to: *mut T,
    capacity: usize,
    needed: *mut usize,
}

/// Checks the caller's buffer, before any work. Without a buffer the call asks for the size only.
///
/// # Safety
/// `to` is NULL or points to `capacity` writable elements, `needed` is NULL or writable; until the [`BufferOut`] is gone.
pub(crate) unsafe fn buffer_out<T>(to: *mut T, capacity: usize, needed: *mut usize) -> Result<BufferOut<T>> {
    if to.is_null() && (capacity > 0 || needed.is_null()) {
        return Err(Failure::null("buffer"));
    }
    Ok(BufferOut { to, capacity, needed })
}

impl<T: Copy> BufferOut<T> {
    /// Writes how many elements there are. True if they are wanted and fit, false if the call only asks for their number.
    pub(crate) fn wants(&self, n: usize) -> Result<bool> {
        if !self.needed.is_null() {
            // SAFETY: writable by the contract of `buffer_out`.
            unsafe { self.needed.write_unaligned(n) };
        }
        if !self.to.is_null() && n > self.capacity {
            let text = format!("the buffer holds {}, {n} are needed", self.capacity);
            return Err(Failure::new(doppler_status::BufferTooSmall, text));
        }
        Ok(!self.to.is_null())
    }

    /// Writes the elements, or only how many they are.
    pub(crate) fn fill(self, items: &[T]) -> Result<()> {
        if self.wants(items.len())? {
            // SAFETY: that many are writable by the contract of `buffer_out`; bytes have no alignment.
            unsafe { std::ptr::copy_nonoverlapping(items.as_ptr().cast::<u8>(), self.to.cast(), size_of_val(items)) };
        }
        Ok(())
    }
}

impl BufferOut<c_char> {
    /// Writes bytes and a NUL behind them.
    pub(crate) fn fill_text(self, text: impl Into<Vec<u8>>) -> Result<()> {
        let mut bytes = text.into();
        bytes.push(0);
        BufferOut { to: self.to.cast::<u8>(), capacity: self.capacity, needed: self.needed }.fill(&bytes)
    }
}

/// Length of the longest start of `text` that has at most `limit` bytes and ends at a character border.
fn cut(text: &str, limit: usize) -> usize {
    (0..=limit.min(text.len())).rev().find(|&n| text.is_char_boundary(n)).unwrap_or(0)
}

/// Copies what fits of a text, and a NUL.
///
/// # Safety
/// `to` is NULL or points to `capacity` writable bytes.
pub(crate) unsafe fn copy_cut(text: &str, to: *mut c_char, capacity: usize) {
    if to.is_null() || capacity == 0 {
        return;
    }
    let n = cut(text, capacity - 1);
    // SAFETY: n < capacity.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast::<u8>(), n);
        to.add(n).write(0);
    }
}

/// A text in a field of fixed size: cut if need be, NUL-terminated, zeros behind.
pub(crate) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let n = cut(text, N - 1);
    for (to, from) in field.iter_mut().zip(text.as_bytes().iter().take(n)) {
        *to = *from as c_char;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_say_what_they_need() {
        let mut needed = 0;
        let mut buffer = [1u32; 3];
        // SAFETY: capacities are those of the buffers.
        unsafe {
            buffer_out(std::ptr::null_mut::<u32>(), 0, &raw mut needed).unwrap().fill(&[4, 5]).unwrap();
            assert_eq!(needed, 2);
            let small = buffer_out(buffer.as_mut_ptr(), 1, &raw mut needed).unwrap().fill(&[4, 5]).unwrap_err();
            assert_eq!((small.status, buffer), (doppler_status::BufferTooSmall, [1, 1, 1]));
            buffer_out(buffer.as_mut_ptr(), 3, std::ptr::null_mut()).unwrap().fill(&[4, 5]).unwrap();
            assert_eq!(buffer, [4, 5, 1]);
            assert!(buffer_out(std::ptr::null_mut::<u32>(), 4, &raw mut needed).is_err());
            assert!(buffer_out(std::ptr::null_mut::<u32>(), 0, std::ptr::null_mut()).is_err());
        }
    }

    #[test]
    fn texts_are_checked_and_cut() {
        // SAFETY: lengths are those of the texts.
        unsafe {
            assert_eq!(text_in(std::ptr::null(), 0, "t").unwrap(), "");
            assert_eq!(text_in(std::ptr::null(), 1, "t").unwrap_err().status, doppler_status::NullPointer);
            assert_eq!(text_in(c"a\xff".as_ptr(), 2, "t").unwrap_err().status, doppler_status::BadUtf8);
            assert_eq!(text_in(c"a\xff".as_ptr(), 1, "t").unwrap(), "a");
            let all = [1u32, 2, 3];
            let lists = lists_in(all.as_ptr(), &[2, 0, 1], "t").unwrap();
            assert_eq!(lists, [&[1, 2][..], &[], &[3]]);
            assert_eq!(
                slice_in(std::ptr::dangling::<u32>(), usize::MAX, "t").unwrap_err().status,
                doppler_status::InvalidArgument
            );
        }
        assert_eq!(fixed::<4>("aéé").map(|c| c as u8), [b'a', 0xc3, 0xa9, 0]);
        assert_eq!(fixed::<3>("aé").map(|c| c as u8), [b'a', 0, 0]);
    }
}
