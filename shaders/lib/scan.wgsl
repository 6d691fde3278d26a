// Running sums over a workgroup of WG threads (256 at most), two at a time, by threads' indices.
// The caller declares `override WG: u32`.
#import thread
var<workgroup> scan_sums: array<vec2<u32>, 256>;

// What the threads before this one have together, and what all have.
struct Scan { before: vec2<u32>, total: vec2<u32> }

fn workgroup_scan(mine: vec2<u32>, t: Thread) -> Scan {
    var sum = mine;
    workgroupBarrier();
    scan_sums[t.lid] = sum;
    workgroupBarrier();
    for (var step = 1u; step < WG; step *= 2u) {
        var other = vec2<u32>(0u);
        if (t.lid >= step) { other = scan_sums[t.lid - step]; }
        workgroupBarrier();
        sum += other;
        scan_sums[t.lid] = sum;
        workgroupBarrier();
    }
    return Scan(sum - mine, scan_sums[WG - 1u]);
}
