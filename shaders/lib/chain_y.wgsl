// Numbers that one stage of a chain leaves to a later one as they are: the halves of a number in two words, of which the first stands at `at`.
#import chain
fn chain_send_y(at: u32, v: f32) {
    chain_send(at, bitcast<u32>(v) & 0xffffu);
    chain_send(at + 1u, bitcast<u32>(v) >> 16u);
}
// The words of a number, there or not yet: to be asked for before they are needed.
fn chain_ask_y(at: u32) -> vec2<u32> { return vec2<u32>(chain_read(at), chain_read(at + 1u)); }
// The number of which these were the words; waits for it if it was not there.
fn chain_take_y(at: u32, asked: vec2<u32>) -> f32 {
    var w = asked;
    for (var n = 0u; n < CHAIN_POLLS && !chain_there(w.xyxy); n++) {
        if (chain_stops(n)) { break; }
        w = chain_ask_y(at);
    }
    if (!chain_there(w.xyxy)) { chain_give_up(); }
    return bitcast<f32>((w.x & 0xffffu) | (w.y << 16u));
}
