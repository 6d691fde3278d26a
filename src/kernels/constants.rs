//! Sizes that shaders and their hosts share. Workgroup sizes stand here and reach the shaders as override
//! constants, except where a shader lays out its workgroup memory by them: a test compares those.

/// Threads of element-wise kernels and of reductions over short rows: a multiple of every subgroup size in use (8 to 64).
pub const THREADS: u32 = 64;
/// Threads of reductions over long rows (logits).
pub const THREADS_LONG: u32 = 256;
/// The same where a row is walked along more than once, on devices that have as many.
pub const THREADS_ROW: u32 = 1024;
/// Threads that fill a large device: products of few rows give each weight row so many that they come to this.
pub const PRODUCT_THREADS: u32 = 1 << 18;
/// The same of a stage of a chain, of which a processor runs one workgroup at a time: more than one after another cost more than longer rows.
pub const STAGE_PRODUCT_THREADS: u32 = 1 << 17;
/// Workgroups of a stage that a large device runs at the same time, about.
pub const STAGE_GROUPS: u32 = 128;
/// Most rows of bytes that products in chains take; with more they are bound by arithmetic, and stage rows where they can.
pub const STAGE_ROWS: u32 = 2;
/// Rows of bytes from which on a workgroup takes eight of them where it stages rows, else four.
pub const EIGHT_FROM: u32 = 5;
/// Blocks of each row of bytes that products of several rows stage at a time.
pub const STAGED_BLOCKS: u32 = 64;
/// Weight rows that a workgroup of the matrix-vector product with experts makes.
pub const VEC_ROWS: u32 = 4;
/// The same where `x` is bytes.
pub const VEC_ROWS_BYTES: u32 = 2;
/// Workgroups of decode attention that fill a large device: rows and heads are split over the length until there are about as many.
pub const DECODE_GROUPS: u32 = 384;
/// Most splits of a row and head.
pub const DECODE_SPLITS: u32 = 64;
/// Rows of activations from which on tiled products are used: up to eight rows matrix-vector products are faster, though some read weights twice.
pub const TILE_FROM: u32 = 9;
/// Tile of the tiled product: rows of activations, rows of weights.
pub const TILE: (u32, u32) = (32, 64);
/// Tile of the cooperative product: rows of activations (also half of them), rows of weights.
pub const COOP_TILE: (u32, u32) = (128, 128);
/// Rows of activations from which on the cooperative product is used, where there is one.
pub const COOP_FROM: u32 = 16;
/// Rows of activations up to which the cooperative product for few rows is used.
pub const FEW_TO: u32 = 32;
/// Its tile: rows of activations (also half of them), rows of weights.
pub const FEW_TILE: (u32, u32) = (32, 32);
/// Blocks along k that its subgroups take at a time; parts of k are a multiple.
pub const FEW_ROUND: u32 = 8;
/// Workgroups of it that fill a large device: k is split until there are about as many.
pub const FEW_GROUPS: u32 = 264;
/// Rows of activations from which on the cooperative product takes weights decoded to f16 before.
pub const DECODE_FROM: u32 = 512;
/// Rows of queries in a workgroup of prefill attention.
pub const ATTENTION_ROWS: u32 = 16;
/// Rows of queries in a workgroup of cooperative attention, whose step is one block of the KV cache.
pub const COOP_ATTENTION_ROWS: u32 = 64;
/// Tokens in a block of the KV cache.
pub const KV_BLOCK_TOKENS: u32 = 32;
/// Experts that a mixture may have, and those it may use for one row (`moe_route.wgsl` and `moe_tiles.wgsl` know both).
pub const MAX_EXPERTS: u32 = 1024;
/// See [`MAX_EXPERTS`].
pub const MAX_EXPERTS_USED: u32 = 64;
/// Rows for each expert, on average, from which on products with experts are grouped into tiles.
pub const GROUP_FROM: u32 = 5;
/// Bindings start at multiples of this: the largest alignment an adapter may ask for.
pub const BINDING_ALIGN: u64 = 256;
/// Words in which a stage of a chain sends a block of 32 numbers as bytes, with what goes with it.
pub const CHAIN_BYTE_WORDS: u32 = 13;
/// The same for numbers.
pub const CHAIN_NUMBER_WORDS: u32 = 34;
/// Words of the best of some results that a product leaves to the choice of a token; and entries of them, at most.
pub const CHAIN_BEST_WORDS: u32 = 3;
/// See [`CHAIN_BEST_WORDS`].
pub const CHAIN_BESTS: u32 = 4096;
/// Words of a part of split attention: a sum of four numbers, its top and its weights.
pub const CHAIN_PART_WORDS: u32 = 6;
