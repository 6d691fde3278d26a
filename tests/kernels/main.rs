//! Every kernel against a reference in f64, on a device, in every variant of the device's abilities.

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod bytes;
mod elementwise;
mod fused;
mod layouts;
mod matmul;
mod moe;
mod norm;
mod record;
mod recurrent;
mod results;
mod rope;
mod sample;
mod stats;
mod weights;
