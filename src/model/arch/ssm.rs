//! The keys `ssm.*`, which describe layers with a state for each head.

use super::Keys;
use crate::error::{Result, bail};
use crate::kernels::{MAX_KEY_DIM, ScanShape};
use crate::model::spec::{RecurrentSpec, ScanRule, ScanSpec};

/// Most columns of all heads together, of keys and of values.
const MAX_WIDTH: u32 = 1 << 20;

/// The layers that `ssm.*` describes. With `tiled` neighbouring heads take neighbouring key heads.
pub(super) fn scanned(k: &Keys<'_>, rule: ScanRule, tiled: bool) -> Result<RecurrentSpec> {
    let (n_head, n_key) = (k.count("ssm.time_step_rank", 1 << 16)?, k.count("ssm.group_count", 1 << 16)?);
    let (inner, key_dim) = (k.count("ssm.inner_size", MAX_WIDTH)?, k.count("ssm.state_size", MAX_KEY_DIM)?);
    // Keys of the delta rule are brought to length 1 four columns at a time.
    let odd = rule == ScanRule::GatedDelta && !key_dim.is_multiple_of(4);
    if odd || !n_head.is_multiple_of(n_key) || !inner.is_multiple_of(n_head) || n_key * key_dim > MAX_WIDTH {
        let file = k.file.name();
        bail!(Unsupported, "{file}: {n_head} recurrent heads in {inner} columns over {n_key} key heads of {key_dim}");
    }
    let shape = ScanShape { n_head, n_key, key_dim, head_dim: inner / n_head, tiled };
    let norm_eps = k.required_positive("attention.layer_norm_rms_epsilon")?;
    Ok(RecurrentSpec::scanned(k.count("ssm.conv_kernel", 1 << 10)?, ScanSpec { rule, shape, norm_eps }))
}
