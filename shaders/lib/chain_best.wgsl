// The best (key, id) of what threads of one stage have made, for a later stage of one workgroup. The host declares BEST_AT, the first of their words, and
// BESTS, how many entries there are; word w of entry i stands at BEST_AT + w * BESTS + i. Ids have 24 bits.
#import chain
#import order
// What loses to all others.
const NO_BEST: vec2<u32> = vec2<u32>(0u, 0xffffffu);
// Leaves the best of `together` neighbours of a subgroup as entry i. All threads of the subgroup come here, those that have `on` set leave it.
fn best_send(t: Thread, on: bool, i: u32, together: u32, mine: vec2<u32>) {
    var best = mine;
    for (var apart = 1u; apart < together; apart *= 2u) {
        let other = subgroupShuffleXor(best, apart);
        if (better(other, best)) { best = other; }
    }
    if (on && t.lane % together == 0u) {
        let at = BEST_AT + i;
        chain_send(at, best.x & 0xffffu);
        chain_send(at + BESTS, best.x >> 16u);
        chain_send(at + 2u * BESTS, best.y);
    }
}
// Waits for entry i.
fn best_receive(i: u32) -> vec2<u32> {
    let at = BEST_AT + i;
    var w = vec3<u32>(0u);
    var there = false;
    for (var n = 0u; n < CHAIN_POLLS; n++) {
        w = vec3<u32>(chain_read(at), chain_read(at + BESTS), chain_read(at + 2u * BESTS));
        there = chain_there(w.xyzz);
        if (there || chain_stops(n)) { break; }
    }
    if (!there) { chain_give_up(); }
    return vec2<u32>((w.x & 0xffffu) | (w.y << 16u), w.z & 0xffffffu);
}
