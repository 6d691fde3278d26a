// What the host and the kernels share about sequences; src/kernels and src/sample hold the Rust twins.

// Why a sequence no longer runs.
const STOP_NONE: u32 = 0u;
const STOP_TOKEN: u32 = 1u;
const STOP_LIMIT: u32 = 2u;
// No token: what a step's ring holds for a sequence that had stopped before.
const NO_TOKEN: u32 = 0xffffffffu;

// Entries of one slot in the stop-id and bias buffers.
const STOP_IDS: u32 = 64u;
const BIAS_ENTRIES: u32 = 256u;

// SampleParams.flags: the window's tokens change logits.
const FLAG_PENALTIES: u32 = 1u;

// One sequence slot.
struct SeqState {
    token: u32,  // next input token
    pos: u32,    // tokens in the KV cache = position of the next input
    limit: u32,  // pos never passes it
    stop: u32,   // STOP_*
    n_stop: u32, // stop ids of this slot
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

// One row of a batch: which sequence slot, at which position.
struct Row {
    slot: u32,
    pos: u32,
}

// How the next token of a slot is chosen.
struct SampleParams {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    penalty_last_n: u32,
    seed_lo: u32,
    seed_hi: u32,
    n_bias: u32,
    flags: u32,
}
