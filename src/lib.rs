//! Doppler runs language models inside other people's programs, on any GPU wgpu reaches.
//!
//! This crate is the Rust side; the C surface is `include/doppler.h` (see `src/ffi`). Layers, each knowing only the ones
//! below: `ffi` → [`session`] → [`model`], [`sample`], [`text`] → [`kernels`], [`format`], [`quant`] → [`gpu`].
//! `docs/architecture.md` says what lives where.

#![deny(unsafe_code)]
#![deny(missing_docs)]
#![warn(missing_debug_implementations, unreachable_pub)]

mod checksum;
pub mod error;
#[allow(unsafe_code, reason = "wgpu's pipeline-cache constructor takes a blob whose origin it cannot check")]
pub mod gpu;

pub use error::{Error, Result};
#[allow(unsafe_code, reason = "the C ABI: pointers from C become Rust values here")]
pub mod ffi;
pub mod format;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod sample;
pub mod session;
pub mod text;
