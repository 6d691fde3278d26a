// Which rows a workgroup of a product by teams takes: its group of weight rows, and its group of NT rows of x. Neighbouring workgroups share weight
// rows. A device divides as slowly as it asks its memory, and one row of x has no need of it. The caller declares NT, and params with groups,
// row_groups and t_rows.
fn team_tile(g: u32) -> vec2<u32> {
    if (params.t_rows <= NT) { return vec2<u32>(g, 0u); }
    let t_groups = params.groups / params.row_groups;
    return vec2<u32>(g / t_groups, g % t_groups);
}
