// Parts of a sum that go from one stage of a chain to a later one, each to one reader: a word for a number, which is not 0 once it is there. The
// reader clears it again, so between two dispatches all are 0 and need no tag. The host declares PARTS_AT, their first word, and PARTS, how many there
// are; word w of part i stands at PARTS_AT + w * PARTS + i.
#import chain
const PART_WORDS: u32 = 6u;
// A sum, the score that its weights are relative to, and their sum.
struct Part { sum: vec4<f32>, top: f32, weights: f32 }

fn part_word(v: f32) -> u32 {
    // The one number that would look like none is not a number.
    return max(~bitcast<u32>(v), 1u);
}
fn part_send(i: u32, p: Part) {
    let at = PARTS_AT + i;
    atomicStore(&chain_words[at], part_word(p.sum.x));
    atomicStore(&chain_words[at + PARTS], part_word(p.sum.y));
    atomicStore(&chain_words[at + 2u * PARTS], part_word(p.sum.z));
    atomicStore(&chain_words[at + 3u * PARTS], part_word(p.sum.w));
    atomicStore(&chain_words[at + 4u * PARTS], part_word(p.top));
    atomicStore(&chain_words[at + 5u * PARTS], part_word(p.weights));
}
fn part_receive(i: u32) -> Part {
    let at = PARTS_AT + i;
    var a = vec4<u32>(0u);
    var b = vec2<u32>(0u);
    var there = false;
    for (var n = 0u; n < CHAIN_POLLS; n++) {
        a = vec4<u32>(chain_read(at), chain_read(at + PARTS), chain_read(at + 2u * PARTS), chain_read(at + 3u * PARTS));
        b = vec2<u32>(chain_read(at + 4u * PARTS), chain_read(at + 5u * PARTS));
        there = all(a != vec4<u32>(0u)) && all(b != vec2<u32>(0u));
        if (there || chain_stops(n)) { break; }
    }
    if (!there) { chain_give_up(); }
    for (var w = 0u; w < PART_WORDS; w++) { atomicStore(&chain_words[at + w * PARTS], 0u); }
    return Part(bitcast<vec4<f32>>(~a), bitcast<f32>(~b.x), bitcast<f32>(~b.y));
}
