//! Typed access to the metadata of a GGUF file.
//!
//! `get_*` gives `None` for an absent key and an error for a present one of a wrong type; `require_*` also
//! refuses absence. Integers convert between widths when the value fits, because converters disagree about
//! widths. Invariant: every error names the file, the key, the type wanted and the type found.

use super::gguf::Gguf;
use super::value::{Array, Value};
use crate::error::{Error, Result, bail};

impl Gguf {
    fn wrong(&self, key: &str, wanted: &str, found: &Value) -> Error {
        Error::BadFile(format!("{}: key {key:?} should be {wanted}, found {}", self.name(), found.kind()))
    }

    fn missing(&self, key: &str) -> Error {
        Error::BadFile(format!("{}: missing key {key:?}", self.name()))
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, wanted: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(wide) = value.as_integer() else { return Err(self.wrong(key, wanted, value)) };
        match T::try_from(wide) {
            Ok(v) => Ok(Some(v)),
            Err(_) => bail!(BadFile, "{}: key {key:?} should be {wanted}, found {wide}", self.name()),
        }
    }

    fn integers<T: TryFrom<i128>>(&self, key: &str, wanted: &str) -> Result<Option<Vec<T>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(array) = value else { return Err(self.wrong(key, wanted, value)) };
        match array.integers() {
            Some(Ok(v)) => Ok(Some(v)),
            Some(Err(x)) => bail!(BadFile, "{}: key {key:?} should be {wanted}, found the element {x}", self.name()),
            None if array.is_empty() => Ok(Some(Vec::new())),
            None => Err(self.wrong(key, wanted, value)),
        }
    }

    /// An integer that fits 32 bits without a sign.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.integer(key, "u32")
    }

    /// An integer that fits 32 bits with a sign.
    pub fn get_i32(&self, key: &str) -> Result<Option<i32>> {
        self.integer(key, "i32")
    }

    /// An integer that fits 64 bits without a sign.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.integer(key, "u64")
    }

    /// A number with a fraction; a 64-bit one is rounded.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(*v)),
            Some(Value::F64(v)) => Ok(Some(*v as f32)),
            Some(other) => Err(self.wrong(key, "f32", other)),
        }
    }

    /// A truth value.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(other) => Err(self.wrong(key, "bool", other)),
        }
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(other) => Err(self.wrong(key, "string", other)),
        }
    }

    /// An array of integers that fit 32 bits without a sign.
    pub fn get_u32_array(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.integers(key, "array of u32")
    }

    /// An array of integers that fit 32 bits with a sign.
    pub fn get_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.integers(key, "array of i32")
    }

    /// An array of numbers with fractions; 64-bit ones are rounded.
    pub fn get_f32_array(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(v))) => Ok(Some(v.clone())),
            Some(Value::Array(Array::F64(v))) => Ok(Some(v.iter().map(|&x| x as f32).collect())),
            Some(Value::Array(a)) if a.is_empty() => Ok(Some(Vec::new())),
            Some(other) => Err(self.wrong(key, "array of f32", other)),
        }
    }

    /// An array of strings, borrowed: vocabularies are large.
    pub fn get_str_array(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(v))) => Ok(Some(v)),
            Some(Value::Array(a)) if a.is_empty() => Ok(Some(&[])),
            Some(other) => Err(self.wrong(key, "array of strings", other)),
        }
    }

    /// An array of truth values; integers count as true when they are not zero (some converters write such masks).
    pub fn get_bool_array(&self, key: &str) -> Result<Option<Vec<bool>>> {
        if let Some(Value::Array(Array::Bool(v))) = self.get(key) {
            return Ok(Some(v.clone()));
        }
        let integers = self.integers::<i64>(key, "array of bool")?;
        Ok(integers.map(|v| v.into_iter().map(|x| x != 0).collect()))
    }

    /// One integer for each of `layers` layers: the key holds either one for all or an array with exactly that many.
    pub fn get_u32_per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<u32>>> {
        if !matches!(self.get(key), Some(Value::Array(_))) {
            return Ok(self.get_u32(key)?.map(|v| vec![v; layers]));
        }
        let values = self.get_u32_array(key)?;
        match values {
            Some(v) if v.len() != layers => {
                bail!(BadFile, "{}: key {key:?} has {} elements for {layers} layers", self.name(), v.len())
            }
            other => Ok(other),
        }
    }
}

macro_rules! require {
    ($($name:ident = $get:ident -> $t:ty),* $(,)?) => {
        impl Gguf {$(
            #[doc = concat!("As [`Gguf::", stringify!($get), "`], but an absent key is an error.")]
            pub fn $name(&self, key: &str) -> Result<$t> {
                self.$get(key)?.ok_or_else(|| self.missing(key))
            }
        )*}
    };
}
require! {
    require_u32 = get_u32 -> u32,
    require_i32 = get_i32 -> i32,
    require_u64 = get_u64 -> u64,
    require_f32 = get_f32 -> f32,
    require_bool = get_bool -> bool,
    require_str = get_str -> &str,
    require_u32_array = get_u32_array -> Vec<u32>,
    require_i32_array = get_i32_array -> Vec<i32>,
    require_f32_array = get_f32_array -> Vec<f32>,
    require_str_array = get_str_array -> &[String],
    require_bool_array = get_bool_array -> Vec<bool>,
}
