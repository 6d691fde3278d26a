// Numbers that the workgroups of one dispatch hand to each other while all of them run. A word of `mail` is an f32 without its last 8 bits, which
// hold a tag: a reader that finds the tag of this dispatch has the number, whatever else has or has not arrived, so nothing but the word
// itself must be ordered. Tags of neighbouring dispatches differ and every word that is read is written in each of them, so an old one is
// never taken for a new one. Who waits in vain, since the device does not run all workgroups at once, notes it in sync[0] and goes on.
// The caller declares params with tag (1..255) and patience: how often is looked.
@group(0) @binding(auto) @coherent @volatile var<storage, read_write> mail: array<vec4<u32>>;
// The same by words: a device may write a vector whole where one of its components is set.
@group(0) @binding(auto) @coherent @volatile var<storage, read_write> mail_words: array<u32>;
// [0]: waits that were in vain. [1..]: see capacity().
@group(0) @binding(auto) var<storage, read_write> sync: array<atomic<u32>>;

fn sealed(v: f32) -> u32 {
    // A NaN stays one: rounding may carry into the sign.
    let rounded = select(bitcast<u32>(v) + 0x80u, 0x7fc00000u, v != v);
    return (rounded & 0xffffff00u) | params.tag;
}
// A number as its readers get it.
fn kept(v: f32) -> f32 { return bitcast<f32>(sealed(v) & 0xffffff00u); }
fn post(word: u32, v: f32) { mail_words[word] = sealed(v); }
fn post_four(i: u32, v: vec4<f32>) { mail[i] = vec4<u32>(sealed(v.x), sealed(v.y), sealed(v.z), sealed(v.w)); }

fn arrived(w: vec4<u32>) -> bool { return all((w & vec4<u32>(255u)) == vec4<u32>(params.tag)); }
// The four numbers at i, of which w was seen first.
fn received(w: vec4<u32>, i: u32) -> vec4<f32> {
    var now = w;
    for (var n = 0u; !arrived(now); n++) {
        // One that waits in vain is enough.
        if (n >= params.patience || ((n & 63u) == 63u && atomicLoad(&sync[0]) != 0u)) {
            atomicAdd(&sync[0], 1u);
            break;
        }
        now = mail[i];
    }
    return bitcast<vec4<f32>>(now & vec4<u32>(0xffffff00u));
}
fn receive(i: u32) -> vec4<f32> { return received(mail[i], i); }

// Finds out how many workgroups of this pipeline run at once: each waits for all others, and the first to give up says how many had come.
fn capacity(t: Thread) {
    if (t.lid == 0u) {
        atomicAdd(&sync[1], 1u);
        for (var n = 0u; n < params.patience; n++) {
            if (atomicLoad(&sync[1]) >= t.nwg.x || atomicLoad(&sync[2]) != 0u) { break; }
        }
        let seen = atomicLoad(&sync[1]);
        if (atomicAdd(&sync[2], 1u) == 0u) { atomicStore(&sync[3], seen); }
    }
}
