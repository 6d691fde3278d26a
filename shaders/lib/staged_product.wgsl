// Products of the staged input with rows of one weight (slot @), by teams of TEAM threads: see staged.wgsl. An instance for each weight: names
// end in its own. Several blocks are asked for at once; every thread of the team has the result.
#slot @
#if FLOATS
fn row@(row: u32, k: u32, lane: u32) -> f32 {
    let steps = k / 8u;
    let first = row * steps;
    var acc = 0.0;
    var i = lane;
    for (; i + 3u * TEAM < steps; i += 4u * TEAM) {
        let a = weight_eight@(first + i);
        let b = weight_eight@(first + i + TEAM);
        let c = weight_eight@(first + i + 2u * TEAM);
        let d = weight_eight@(first + i + 3u * TEAM);
        acc += staged_eight(a, i) + staged_eight(b, i + TEAM) + staged_eight(c, i + 2u * TEAM) + staged_eight(d, i + 3u * TEAM);
    }
    for (; i < steps; i += TEAM) { acc += staged_eight(weight_eight@(first + i), i); }
    return team_add(acc);
}
// Of two rows.
fn rows@(row: vec2<u32>, k: u32, lane: u32) -> vec2<f32> {
    let steps = k / 8u;
    let first = row * steps;
    var acc = vec2<f32>(0.0);
    var i = lane;
    for (; i + TEAM < steps; i += 2u * TEAM) {
        let a = weight_eight@(first.x + i);
        let b = weight_eight@(first.y + i);
        let c = weight_eight@(first.x + i + TEAM);
        let d = weight_eight@(first.y + i + TEAM);
        acc += vec2<f32>(staged_eight(a, i) + staged_eight(c, i + TEAM), staged_eight(b, i) + staged_eight(d, i + TEAM));
    }
    for (; i < steps; i += TEAM) { acc += vec2<f32>(staged_eight(weight_eight@(first.x + i), i), staged_eight(weight_eight@(first.y + i), i)); }
    return vec2<f32>(team_add(acc.x), team_add(acc.y));
}
#else
fn row@(row: u32, k: u32, lane: u32) -> f32 {
    let blocks = k / 32u;
    let first = row * blocks;
    var acc = 0.0;
    var i = lane;
    for (; i + 3u * TEAM < blocks; i += 4u * TEAM) {
        let a = weight_bytes@(first + i);
        let b = weight_bytes@(first + i + TEAM);
        let c = weight_bytes@(first + i + 2u * TEAM);
        let d = weight_bytes@(first + i + 3u * TEAM);
        acc += staged_block(a, i) + staged_block(b, i + TEAM) + staged_block(c, i + 2u * TEAM) + staged_block(d, i + 3u * TEAM);
    }
    for (; i < blocks; i += TEAM) { acc += staged_block(weight_bytes@(first + i), i); }
    return team_add(acc);
}
// Of two rows.
fn rows@(row: vec2<u32>, k: u32, lane: u32) -> vec2<f32> {
    let blocks = k / 32u;
    let first = row * blocks;
    var acc = vec2<f32>(0.0);
    var i = lane;
    for (; i + TEAM < blocks; i += 2u * TEAM) {
        let a = weight_bytes@(first.x + i);
        let b = weight_bytes@(first.y + i);
        let c = weight_bytes@(first.x + i + TEAM);
        let d = weight_bytes@(first.y + i + TEAM);
        acc += vec2<f32>(staged_block(a, i) + staged_block(c, i + TEAM), staged_block(b, i) + staged_block(d, i + TEAM));
    }
    for (; i < blocks; i += TEAM) { acc += vec2<f32>(staged_block(weight_bytes@(first.x + i), i), staged_block(weight_bytes@(first.y + i), i)); }
    return vec2<f32>(team_add(acc.x), team_add(acc.y));
}
#endif
