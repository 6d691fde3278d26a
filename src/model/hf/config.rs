//! `config.json`: typed access, and the keys that are made of it.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result, bail};
use crate::format::{Value, read_json};

/// The configuration of a folder's model. Of models that also see or hear, the part for text.
#[derive(Debug)]
pub(super) struct Config {
    /// The file's path, for messages.
    pub(super) name: String,
    fields: Map<String, Json>,
}

impl Config {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut config = Self::read(&folder.join("config.json"))?;
        if let Some(Json::Object(text)) = config.fields.remove("text_config") {
            config.fields.extend(text);
        }
        Ok(config)
    }

    /// Any file with an object.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        match read_json(path)? {
            Json::Object(fields) => Ok(Self { name, fields }),
            _ => bail!(BadFile, "{name}: no JSON object"),
        }
    }

    /// Its keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// A part of the configuration that is an object itself; its keys are shown with `name` in front.
    pub(super) fn object(&self, name: &str) -> Option<Self> {
        let fields = self.fields.get(name)?.as_object()?.clone();
        Some(Self { name: format!("{}: {name}", self.name), fields })
    }

    /// An empty part.
    pub(super) fn none(&self) -> Self {
        Self { name: self.name.clone(), fields: Map::new() }
    }

    fn get<T>(&self, key: &str, wanted: &str, read: impl Fn(&Json) -> Option<T>) -> Result<Option<T>> {
        match self.fields.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(v) => Ok(Some(v)),
                None => bail!(BadFile, "{}: key \"{key}\" should be {wanted}, found {value}", self.name),
            },
        }
    }

    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a whole number", |v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key, "a number", |v| v.as_f64().map(|x| x as f32))
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Json::as_f64)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Json::as_bool)
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<String>> {
        self.get(key, "a text", |v| v.as_str().map(str::to_string))
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let text = |v: &Json| v.as_str().map(str::to_string);
        self.get(key, "a list of texts", |v| v.as_array()?.iter().map(text).collect())
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let number = |v: &Json| v.as_f64().map(|x| x as f32);
        self.get(key, "a list of numbers", |v| v.as_array()?.iter().map(number).collect())
    }

    fn missing(&self, key: &str) -> Error {
        Error::BadFile(format!("{}: key \"{key}\" is missing", self.name))
    }

    pub(super) fn need_u32(&self, key: &str) -> Result<u32> {
        self.u32(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn need_f32(&self, key: &str) -> Result<f32> {
        self.f32(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn need_f64(&self, key: &str) -> Result<f64> {
        self.f64(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn need_str(&self, key: &str) -> Result<String> {
        self.str(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn need_numbers(&self, key: &str) -> Result<Vec<f32>> {
        self.numbers(key)?.ok_or_else(|| self.missing(key))
    }

    /// Refuses a value that the architecture here cannot have.
    pub(super) fn refuse(&self, key: &str) -> Result<()> {
        let value = self.fields.get(key).unwrap_or(&Json::Null);
        bail!(Unsupported, "{}: key \"{key}\": {value} does not run", self.name)
    }

    /// Refuses anything but `wanted` where the key is present.
    pub(super) fn expect(&self, key: &str, wanted: &[Json]) -> Result<()> {
        match self.fields.get(key) {
            Some(v) if !v.is_null() && !wanted.contains(v) => self.refuse(key),
            _ => Ok(()),
        }
    }
}

/// What the model's architecture reads: keys as in GGUF files, and tensors that come from the configuration.
#[derive(Debug)]
pub(super) struct Keys {
    arch: &'static str,
    pub(super) list: Vec<(String, Value)>,
    /// Names and values.
    pub(super) tensors: Vec<(&'static str, Vec<f32>)>,
}

impl Keys {
    pub(super) fn new(arch: &'static str) -> Self {
        let list = vec![("general.architecture".to_string(), Value::String(arch.to_string()))];
        Self { arch, list, tensors: Vec::new() }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        let name = format!("{}.{key}", self.arch);
        self.list.iter().any(|(k, _)| *k == name)
    }

    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.list.push((format!("{}.{key}", self.arch), value.into()));
    }

    pub(super) fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}
