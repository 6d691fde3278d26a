// h[r, :] = W[row_start + r, :] in f16, in whole blocks of 32. A thread decodes one block; through workgroup memory, neighbouring threads
// write neighbouring vectors.
#import thread
const WG: u32 = 64u;
struct Params { row_start: u32, rows: u32, k_blocks: u32 }
@group(0) @binding(auto) var<storage, read_write> h: array<vec4<u32>>;
#slot weight

var<workgroup> blocks: array<vec4<u32>, 256>;

@compute @workgroup_size(WG)
fn main(t: Thread) {
    let first = group_index(t) * WG;
    let end = params.rows * params.k_blocks;
    var w = weight_block(params.row_start * params.k_blocks + min(first + t.lid, end - 1u));
    for (var j = 0u; j < 4u; j++) {
        let a = w[j * 2u];
        let b = w[j * 2u + 1u];
        blocks[t.lid * 4u + j] =
            vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
    }
    workgroupBarrier();
    for (var j = t.lid; j < 256u; j += WG) {
        if (first * 4u + j < end * 4u) { h[first * 4u + j] = blocks[j]; }
    }
}
