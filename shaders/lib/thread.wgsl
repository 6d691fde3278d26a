struct Thread {
    @builtin(local_invocation_index) lid: u32,
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) nwg: vec3<u32>,
#if SUBGROUPS
    @builtin(subgroup_id) sg: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(num_subgroups) n_sg: u32,
    @builtin(subgroup_size) sg_size: u32,
#endif
}
// Index of this workgroup in a grid of any size; the host folds grids beyond 65,535 groups into y.
fn group_index(t: Thread) -> u32 { return t.wid.x + t.wid.y * t.nwg.x; }

// A thread's number among those of its workgroup, where neighbours are those of a subgroup, as in team_of.
fn place_of(t: Thread) -> u32 { return team_of(t, 1u).x; }

// A thread's team of `size` neighbours, and its place in that. With subgroups, neighbours are those of a subgroup, all of which are full: workgroups
// are multiples of them, in one dimension, or smaller than one.
fn team_of(t: Thread, size: u32) -> vec2<u32> {
#if SUBGROUPS
    let i = t.sg * t.sg_size + t.lane;
#else
    let i = t.lid;
#endif
    return vec2<u32>(i / size, i % size);
}
