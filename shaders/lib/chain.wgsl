// What passes from one stage of a chain to a later one (src/gpu/chain.rs): words that carry the tag of their chain, so that who reads a word knows by
// it alone whether it is there, and nothing is asked of the order of writes. A word is 24 bits, and the tag above them.
// The host clears all words before a tag is used again. Word 0 has no tag: it is not 0 if someone gave up waiting.
// A block of 32 numbers is CHAIN_WORDS words: eleven with its signed bytes, three in each, then the scale and, where that is asked for, the sum
// of squares, floats without their last eight bits. Word w of block b of a row stands at (row * CHAIN_WORDS + w) * blocks of a row + b.
// Numbers take CHAIN_NUMBER_WORDS: each without its last eight bits, then in the same way sums of squares of either half of the block. Number j of four i
// of a row stands at row * CHAIN_NUMBER_WORDS * blocks of a row + j * fours of a row + i, word w of block b as those of bytes.
// The host declares chain_tag(), and where in chain_words something stands.
const CHAIN_WORDS: u32 = 13u;
const CHAIN_NUMBER_WORDS: u32 = 34u;
// A quarter of a second at least: reading takes a device about a microsecond.
const CHAIN_POLLS: u32 = 262144u;
@group(0) @binding(auto) var<storage, read_write> chain_words: array<atomic<u32>>;

fn chain_send(at: u32, v: u32) { atomicStore(&chain_words[at], (v & 0xffffffu) | chain_tag()); }
fn chain_read(at: u32) -> u32 { return atomicLoad(&chain_words[at]); }
// Whether all bits of four words' tags are this chain's.
fn chain_there(w: vec4<u32>) -> bool {
    let differ = w ^ vec4<u32>(chain_tag());
    return ((differ.x | differ.y | differ.z | differ.w) >> 24u) == 0u;
}
// After n polls in vain: whether to stop, since someone else has.
fn chain_stops(n: u32) -> bool { return n % 1024u == 1023u && chain_read(0u) != 0u; }
fn chain_give_up() { atomicStore(&chain_words[0], 1u); }
