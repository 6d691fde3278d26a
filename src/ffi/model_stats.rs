//! What a model cost and what its attention cache holds.

use crate::ffi::guard;
use crate::ffi::model::{MODELS, doppler_model};
use crate::ffi::status::doppler_status;
use crate::ffi::structs::{Versioned, output};

/// What the attention cache of the layers with one window holds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct doppler_kv_group {
    /// Positions that a token of these layers sees, itself included. 0: all.
    pub window: u32,
    /// Layers.
    pub n_layer: u32,
    /// Blocks that exist.
    pub blocks: u32,
    /// Blocks in use.
    pub used: u32,
    /// Most blocks that were ever in use.
    pub high_water: u32,
    /// Blocks in use that several sessions share.
    pub shared: u32,
    /// Bytes of one block, all layers of the group, keys and values.
    pub block_bytes: u64,
}

/// Groups that doppler_model_stats describes.
pub const DOPPLER_KV_GROUPS: usize = 8;

/// What loading a model cost, and what its attention cache holds. Set `struct_size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct doppler_model_stats {
    /// sizeof(doppler_model_stats)
    pub struct_size: usize,
    /// Wall time of loading, nanoseconds.
    pub load_ns: u64,
    /// Bytes of weights in the file.
    pub file_bytes: u64,
    /// Bytes of one block of the attention cache in every group of layers, keys and values: what `kv_block_tokens` tokens take.
    pub kv_block_bytes: u64,
    /// Tokens in a block.
    pub kv_block_tokens: u32,
    /// Blocks that exist, in all groups.
    pub kv_blocks: u32,
    /// Blocks in use.
    pub kv_blocks_used: u32,
    /// Most blocks that were ever in use.
    pub kv_blocks_high_water: u32,
    /// Bytes of all blocks.
    pub kv_bytes: u64,
    /// Bytes of the blocks in use.
    pub kv_used_bytes: u64,
    /// Blocks copied because a session wrote to one that it shared.
    pub kv_copies: u64,
    /// Blocks in use that several sessions share.
    pub kv_blocks_shared: u32,
    /// Groups of layers: those with the same sliding window keep their tokens together.
    pub kv_n_groups: u32,
    /// The first of them, in the order of their first layers; the rest is zero.
    pub kv_groups: [doppler_kv_group; DOPPLER_KV_GROUPS],
    /// Recurrent layers: they keep a state of fixed size for a session instead of something for each token.
    pub n_recurrent_layer: u32,
    /// States that exist; one is that of all recurrent layers after some token of a session, which has a few of them.
    pub states: u32,
    /// States in use.
    pub states_used: u32,
    /// Most states that were ever in use.
    pub states_high_water: u32,
    /// Bytes of one state.
    pub state_bytes: u64,
    /// Bytes of all states.
    pub states_bytes: u64,
    /// Of the time of loading: opening the file and measuring what it holds.
    pub load_open_ns: u64,
    /// Of the time of loading: the weights' way to the device. What follows happens beside it.
    pub load_weights_ns: u64,
    /// Indexing the vocabulary.
    pub load_vocabulary_ns: u64,
    /// Compiling pipelines and preparing the first prompt.
    pub load_prewarm_ns: u64,
    /// Reading the file and repacking weights: CPU time of all threads together.
    pub load_repack_ns: u64,
}

// SAFETY: `repr(C)`, numbers only.
unsafe impl Versioned for doppler_model_stats {
    const NAME: &'static str = "doppler_model_stats";
    const FIRST: usize = std::mem::offset_of!(Self, kv_blocks_high_water) + 4;
}

/// What loading a model cost, and what its attention cache holds.
///
/// @param stats  filled in; set its `struct_size`
///
/// Threads: any; waits for a submit that is under way in one of its sessions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doppler_model_get_stats(
    model: *const doppler_model,
    stats: *mut doppler_model_stats,
) -> doppler_status {
    guard(|| {
        let model = MODELS.get(model)?;
        // SAFETY: the caller vouches for the structure.
        let stats = unsafe { output(stats)? };
        let s = model.stats();
        let mut kv_groups = [doppler_kv_group::default(); DOPPLER_KV_GROUPS];
        for (to, g) in kv_groups.iter_mut().zip(&s.kv.groups) {
            *to = doppler_kv_group {
                window: g.window,
                n_layer: g.layers,
                blocks: g.blocks,
                used: g.used,
                high_water: g.high_water,
                shared: g.shared,
                block_bytes: g.block_bytes,
            };
        }
        stats.write(doppler_model_stats {
            struct_size: size_of::<doppler_model_stats>(),
            load_ns: s.load_ns,
            file_bytes: s.file_bytes,
            kv_block_bytes: s.kv.block_bytes,
            kv_block_tokens: s.kv.block_tokens,
            kv_blocks: s.kv.blocks,
            kv_blocks_used: s.kv.used,
            kv_blocks_high_water: s.kv.high_water,
            kv_bytes: s.kv.bytes,
            kv_used_bytes: s.kv.used_bytes,
            kv_copies: s.kv.copies,
            kv_blocks_shared: s.kv.shared,
            kv_n_groups: s.kv.groups.len() as u32,
            kv_groups,
            n_recurrent_layer: s.recurrent.layers,
            states: s.recurrent.places,
            states_used: s.recurrent.used,
            states_high_water: s.recurrent.high_water,
            state_bytes: s.recurrent.place_bytes,
            states_bytes: s.recurrent.bytes,
            load_open_ns: s.load.open_ns,
            load_weights_ns: s.load.weights.fill_ns,
            load_vocabulary_ns: s.load.vocabulary_ns,
            load_prewarm_ns: s.load.weights.prewarm_ns,
            load_repack_ns: s.load.weights.upload.repack_ns,
        });
        Ok(())
    })
}
