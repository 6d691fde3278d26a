//! One file an operation: its declaration, its parameters, and a function that turns shapes into a [`Dispatch`].
//!
//! Kernels know shapes, constants, workgroup counts and variants; they do not know models or files, and they submit nothing.
//! Each has a test against a reference in f64 in `tests/kernels.rs`.

mod activate;
mod attention;
mod attention_decode;
mod byte_rows;
mod cast;
mod chain;
mod chain_attention;
mod chain_best;
pub mod constants;
mod gated_norm;
mod gather;
mod matmul;
mod matmul_coop;
mod matmul_decoded;
mod matmul_few;
mod matmul_fused;
mod moe;
mod moe_coop;
mod moe_few;
mod pool_rows;
mod qk_norm;
mod residual;
mod rmsnorm;
mod rope;
pub mod sample;
mod score;
mod short_conv;
mod softcap;
mod softmax;
mod state_scan;
mod tensor_stats;
mod to_halves;
pub mod variants;
mod weight;
mod weight_upload;
mod width;

use std::sync::LazyLock;

use crate::error::{Result, bail};
use crate::gpu::{BufferSlice, Fragment, Kernel};
use crate::quant::{FORMATS, Format};

pub use activate::{Activation, activate, activate_bytes, gelu, glu, glu_bytes, silu};
pub use attention::{AttentionShape, attention_coop, attention_coop_fits, attention_prefill, attention_prefill_fits};
pub use attention_decode::{
    AttentionParts, Fresh, Queries, attention_decode, attention_fresh_fits, attention_lanes_head, attention_split,
    attention_splits,
};
pub use byte_rows::{ByteRows, byte_rows};
pub use cast::{Cast, cast};
pub use chain::{ChainWidths, MAX_CHAINS, record_chain};
pub use chain_attention::{attention_chain_words, record_attention_chain};
pub use gated_norm::{gated_norm, sigmoid_gate};
pub use gather::{Ids, dequant, gather, gather_positions, lookup};
pub use matmul::{Input, MatmulPath, RowNorm, matmul, matmul_bytes, matmul_with};
pub use matmul_coop::{CoopTile, HalfRoom, HalfRows, half_rows, matmul_coop, matmul_coop_fits, matmul_fast};
pub use matmul_decoded::{decoded_bytes, half_weights, matmul_decoded};
pub use matmul_few::{FewSplits, few_parts_bytes, matmul_few, matmul_few_parts, sum_parts};
pub use matmul_fused::{Next, matmul_glu, matmul_glu_fits, matmul_next, matmul_next_fits};
pub use moe::{
    Grouping, MoeShape, Routing, SharedExpert, moe_combine, moe_group, moe_matmul, moe_matmul_bytes, moe_route,
    tile_columns,
};
pub use moe_coop::{coop_columns, coop_entries, moe_coop_fits, moe_matmul_coop};
pub use moe_few::{moe_down, moe_few_fits, moe_glu};
pub use pool_rows::{Stretch, pool_rows, unit_rows};
pub use qk_norm::{Segments, qk_norm};
pub use residual::{add_bias, residual};
pub use rmsnorm::{Norm, NormKind, norm, norm_bytes, rmsnorm};
pub use rope::{AngleTable, RopePairs, RopeShape, rope};
pub use score::{Scored, log_sum, token_score};
pub use short_conv::{Memory, NO_PLACE, Places, ShortConv, short_conv};
pub use softcap::softcap;
pub use softmax::softmax;
pub use state_scan::{MAX_KEY_DIM, ScanInputs, ScanShape, state_scan, state_step};
pub use tensor_stats::{NO_BAD_ELEMENT, STATS_PARTIAL_BYTES, TensorStats, tensor_stats};
pub use to_halves::{Parts, activate_half, norm_half};
pub use weight::{ExpertWeight, RowShape, Weight, WeightPart, upload_vector};
pub use weight_upload::{RowBytes, RowSource, UploadTimes, WeightFill, WeightUploader};
pub use width::{measure_width, width_of, width_work};

/// Every kernel. The shader test walks this list; a kernel that is not in it does not exist.
pub static KERNELS: &[&Kernel] = &[
    &activate::ACTIVATE,
    &to_halves::ACTIVATE_HALF,
    &attention::ATTENTION_COOP,
    &attention_decode::ATTENTION_COMBINE,
    &attention_decode::ATTENTION_DECODE,
    &attention::ATTENTION_PREFILL,
    &byte_rows::BYTE_ROWS,
    &cast::CAST,
    &width::DEVICE_WIDTH,
    &gated_norm::GATED_NORM,
    &gated_norm::SIGMOID_GATE,
    &gather::DEQUANT,
    &gather::GATHER,
    &matmul_coop::HALF_ROWS,
    &matmul_coop::MATMUL_COOP,
    &matmul_decoded::HALF_WEIGHTS,
    &matmul_few::MATMUL_FEW,
    &matmul_few::SUM_PARTS,
    &matmul_fused::MATMUL_GLU,
    &matmul_fused::MATMUL_NEXT,
    &score::LOG_SUM,
    &moe_coop::MOE_COOP,
    &matmul::MATMUL_TILE,
    &matmul::MATMUL_VEC,
    &moe::MOE_COMBINE,
    &moe_few::MOE_DOWN,
    &moe_few::MOE_GLU,
    &moe::MOE_GROUP,
    &moe::MOE_ROUTE,
    &moe::MOE_TILE,
    &moe::MOE_TILES,
    &moe::MOE_VEC,
    &pool_rows::POOL_ROWS,
    &to_halves::NORM_HALF,
    &qk_norm::QK_NORM,
    &residual::RESIDUAL,
    &rmsnorm::RMSNORM,
    &rope::ROPE,
    &sample::CHECK_STOP,
    &sample::SAMPLE_ARGMAX,
    &sample::SAMPLE_GREEDY,
    &sample::SAMPLE_PENALIZE,
    &sample::SAMPLE_PICK,
    &sample::STEP_BEGIN,
    &sample::STEP_SWITCH,
    &short_conv::SHORT_CONV,
    &softcap::SOFTCAP,
    &softmax::SOFTMAX,
    &state_scan::STATE_SCAN,
    &state_scan::STATE_STEP,
    &tensor_stats::TENSOR_STATS,
    &score::TOKEN_SCORE,
    &pool_rows::UNIT_ROWS,
];

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
    /// Signed bytes: each 32 neighbouring dimensions of a head share an f16 scale, rounded as GGML's Q8_0.
    Q8,
}

/// Dimensions that share a scale in [`KvType::Q8`].
const Q8_BLOCK: u32 = 32;

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::F32, KvType::Q8];

    /// Bytes of one head at one position, keys or values.
    pub fn row_bytes(self, head_dim: u32) -> u64 {
        match self {
            KvType::F16 => u64::from(head_dim) * 2,
            KvType::F32 => u64::from(head_dim) * 4,
            // Two scales a word: one row shares no word with another, since different workgroups write them.
            KvType::Q8 => u64::from(head_dim + head_dim.div_ceil(2 * Q8_BLOCK) * 4),
        }
    }

    /// Dimensions for which the kernel that writes a head has threads: it stores [`KvType::Q8`] two blocks at a time.
    fn stored_dims(self, head_dim: u32) -> u32 {
        match self {
            KvType::F16 | KvType::F32 => head_dim,
            KvType::Q8 => head_dim.next_multiple_of(2 * Q8_BLOCK),
        }
    }

    /// Fails unless heads of this size can be stored.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] naming the type and the size.
    pub fn check(self, head_dim: u32) -> Result<()> {
        if self == KvType::Q8 && !head_dim.is_multiple_of(Q8_BLOCK) {
            bail!(Unsupported, "kv type q8 with heads of {head_dim} dimensions: it needs a multiple of {Q8_BLOCK}");
        }
        Ok(())
    }

    /// `f16`, `f32` or `q8`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
            KvType::Q8 => "q8",
        }
    }

    fn fragment(self) -> &'static Fragment {
        static F16: Fragment = Fragment { name: "kv/f16", source: include_str!("../../shaders/kv/f16.wgsl") };
        static F32: Fragment = Fragment { name: "kv/f32", source: include_str!("../../shaders/kv/f32.wgsl") };
        static Q8: Fragment = Fragment { name: "kv/q8", source: include_str!("../../shaders/kv/q8.wgsl") };
        match self {
            KvType::F16 => &F16,
            KvType::F32 => &F32,
            KvType::Q8 => &Q8,
        }
    }
}

static WEIGHT_FRAGMENTS: LazyLock<Vec<Fragment>> =
    LazyLock::new(|| FORMATS.iter().map(|f| Fragment { name: f.name, source: f.fragment }).collect());

/// The WGSL that reads a weight format.
fn weight_fragment(format: &Format) -> Result<&'static Fragment> {
    match WEIGHT_FRAGMENTS.iter().find(|f| f.name == format.name) {
        Some(f) => Ok(f),
        None => bail!(Internal, "weight format {} is not in the list of formats", format.name),
    }
}

/// Every fragment that can fill a slot; for the shader test.
pub fn fragments_of(slot: &str) -> Vec<&'static Fragment> {
    match slot {
        "kv" => KvType::ALL.iter().map(|kv| kv.fragment()).collect(),
        _ => WEIGHT_FRAGMENTS.iter().collect(),
    }
}

/// Where a layer's keys and values are: the rows of a batch with their slots and positions, the slots' block tables, and the pages.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    /// [`sample::Row`] of each row of the batch.
    pub rows: BufferSlice<'a>,
    /// Block numbers, `[slot][table_stride]`.
    pub tables: BufferSlice<'a>,
    /// Entries of one slot's table.
    pub table_stride: u32,
    /// Storage of keys and values.
    pub kv_type: KvType,
    /// Keys, `[block][kv head][position in block]` of rows of [`KvType::row_bytes`].
    pub k: BufferSlice<'a>,
    /// Values, likewise.
    pub v: BufferSlice<'a>,
}

/// An f32 matrix in a buffer: row `r`, column `c` stands at float `offset + r * stride + c`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Where it is.
    pub data: BufferSlice<'a>,
    /// Rows (tokens).
    pub rows: u32,
    /// Columns in use.
    pub cols: u32,
    /// Floats from one row to the next.
    pub stride: u32,
    /// Floats before the first row.
    pub offset: u32,
}

impl<'a> Matrix<'a> {
    /// A dense matrix at the start of a buffer.
    pub fn new(data: impl Into<BufferSlice<'a>>, rows: u32, cols: u32) -> Self {
        Self { data: data.into(), rows, cols, stride: cols, offset: 0 }
    }

    /// Columns `from .. from + cols` of the same rows.
    #[must_use]
    pub fn columns(self, from: u32, cols: u32) -> Self {
        Self { offset: self.offset + from, cols, ..self }
    }

    /// Fails unless the matrix lies inside its buffer range.
    fn check(&self, what: &str) -> Result<()> {
        let end = u64::from(self.offset)
            + u64::from(self.rows.saturating_sub(1)) * u64::from(self.stride)
            + u64::from(self.cols);
        if end * 4 > self.data.size {
            bail!(
                InvalidArgument,
                "{what}: {} x {} (stride {}, offset {}) does not fit in {} bytes",
                self.rows,
                self.cols,
                self.stride,
                self.offset,
                self.data.size
            );
        }
        Ok(())
    }

    /// [`Matrix::check`], and that it can be read as `vec4`.
    fn check_vec4(&self, what: &str) -> Result<()> {
        if !self.cols.is_multiple_of(4) || !self.stride.is_multiple_of(4) || !self.offset.is_multiple_of(4) {
            bail!(
                InvalidArgument,
                "{what}: columns, stride and offset ({}, {}, {}) must be multiples of 4",
                self.cols,
                self.stride,
                self.offset
            );
        }
        self.check(what)
    }
}
