// Numbers that one stage of a chain leaves to a later one as they are: the halves of number o in two words from CHAIN_Y_AT on, which the host declares.
#import chain
fn chain_send_y(o: u32, v: f32) {
    chain_send(CHAIN_Y_AT + 2u * o, bitcast<u32>(v) & 0xffffu);
    chain_send(CHAIN_Y_AT + 2u * o + 1u, bitcast<u32>(v) >> 16u);
}
// The words of a number, there or not yet: to be asked for before they are needed.
fn chain_ask_y(o: u32) -> vec2<u32> { return vec2<u32>(chain_read(CHAIN_Y_AT + 2u * o), chain_read(CHAIN_Y_AT + 2u * o + 1u)); }
// The number of which these were the words; waits for it if it was not there.
fn chain_take_y(o: u32, asked: vec2<u32>) -> f32 {
    var w = asked;
    for (var n = 0u; n < CHAIN_POLLS && !chain_there(w.xyxy); n++) {
        if (chain_stops(n)) { break; }
        w = chain_ask_y(o);
    }
    if (!chain_there(w.xyxy)) { chain_give_up(); }
    return bitcast<f32>((w.x & 0xffffu) | (w.y << 16u));
}
