//! The rows of each expert, and the tiles and grids of grouped products: exact, in any buffers.

use doppler::kernels::{Grouping, moe_group};

use super::{Buffers, Groups, random_ids, shape};
use crate::common::*;

const WIDTHS: [u32; 2] = [3, 12];

#[track_caller]
fn check(v: &Variant, s: doppler::kernels::MoeShape, ids: &[u32]) {
    let want = Groups::of(ids, s.n_expert, WIDTHS);
    let b = Buffers::with_ids(v, s, WIDTHS, ids);
    // The second time in what the first left.
    for round in 0..2 {
        run(&v.gpu, moe_group(b.routing(), b.grouping()).unwrap());
        let got = Groups::read(v, &b);
        assert!(got == want, "{s:?} round {round} ({}): {:?} {:?}", v.name, got.groups, got.tiles);
    }
    let total: u32 = want.groups.iter().map(|g| g[1]).sum();
    assert_eq!(u64::from(total), s.entries(), "every entry is in a group");
    assert!(want.tiles.len() as u64 * 16 <= s.tiles_bytes(), "{s:?}: tiles fit");
}

#[test]
fn any_number_of_rows_and_experts() {
    for v in variants() {
        let mut rng = Rng(5);
        for (n_expert, n_used) in [(4, 2), (8, 2), (8, 8), (60, 4), (128, 8), (512, 10), (1024, 1), (1, 1)] {
            let rows: &[u32] = if v.full { &[1, 2, 3, 31, 32, 33, 64, 100, 257, 300] } else { &[1, 33, 300] };
            for &rows in rows {
                let s = shape(rows, n_expert, n_used);
                check(v, s, &random_ids(&mut rng, s, n_expert));
            }
        }
    }
}

/// One row more at a time, over the edges of tiles.
#[test]
fn every_number_of_rows() {
    let Some(v) = full() else { return };
    let mut rng = Rng(6);
    for rows in 1..=300 {
        let s = shape(rows, 8, 2);
        check(v, s, &random_ids(&mut rng, s, 8));
    }
}

#[test]
fn empty_experts_and_all_rows_to_one() {
    for v in variants() {
        for rows in [1u32, 32, 97, 300] {
            for (n_expert, expert) in [(4, 0), (4, 3), (60, 17), (1024, 1023)] {
                check(v, shape(rows, n_expert, 1), &vec![expert; rows as usize]);
            }
            // The middle ones only.
            let s = shape(rows, 9, 2);
            let ids: Vec<u32> = random_ids(&mut Rng(rows.into()), s, 3).iter().map(|id| id + 3).collect();
            check(v, s, &ids);
        }
    }
}

/// More tiles than a grid dimension holds: the grid gets a second plane.
#[test]
fn more_tiles_than_a_grid_dimension() {
    let Some(v) = full() else { return };
    let s = shape(32 * 65_535 / 2 + 999, 3, 2);
    let ids = random_ids(&mut Rng(8), s, 3);
    check(v, s, &ids);
    assert_eq!(Groups::of(&ids, 3, WIDTHS).grids[2], 2);
}

#[test]
fn buffers_are_checked() {
    let Some(v) = full() else { return };
    let s = shape(40, 8, 2);
    let b = Buffers::new(v, s, WIDTHS, 0);
    let small = untouched(&v.gpu, 4);
    let part = |g: Grouping<'_>| moe_group(b.routing(), g).is_err();
    assert!(!part(b.grouping()));
    assert!(part(Grouping { groups: (&small).into(), ..b.grouping() }));
    assert!(part(Grouping { order: (&small).into(), ..b.grouping() }));
    assert!(part(Grouping { tiles: (&small).into(), ..b.grouping() }));
    assert!(part(Grouping { grids: &small, ..b.grouping() }));
    assert!(part(Grouping { widths: [1, 65_536], ..b.grouping() }));
}
