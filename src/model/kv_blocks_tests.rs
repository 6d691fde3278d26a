use super::*;

fn group(window: u32, blocks: u32) -> Group {
    let mut g = Group::new(window);
    g.grow(blocks);
    g
}

fn extend(table: &mut BlockTable, group: &mut Group, end: u32) {
    while table.end() < end {
        table.blocks.push(group.take().expect("a block"));
    }
}

/// A copy of a table's blocks up to a place.
fn share(table: &BlockTable, group: &mut Group, end: u32) -> BlockTable {
    let blocks = table.blocks[..(end - table.first) as usize].to_vec();
    blocks.iter().for_each(|&b| group.share(b));
    BlockTable { first: table.first, blocks, sent: 0 }
}

#[test]
fn tables_take_and_give_back_whole_blocks() {
    let mut g = group(0, 4);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    extend(&mut a, &mut g, 2);
    extend(&mut b, &mut g, 2);
    assert_eq!((a.blocks.as_slice(), b.blocks.as_slice()), ([0, 1].as_slice(), [2, 3].as_slice()));
    assert!(g.take().is_none());
    a.drop_from(&mut g, 1);
    assert_eq!((a.end(), g.used(), g.high_water), (1, 3, 4));
    a.drop_from(&mut g, 0);
    b.drop_from(&mut g, 0);
    assert_eq!((g.used(), g.held), (0, 0));
    assert!(g.references.iter().all(|&r| r == 0));
    g.grow(6);
    assert_eq!(g.used(), 0);
    extend(&mut a, &mut g, 6);
    assert_eq!(a.blocks.iter().copied().max(), Some(5));
}

#[test]
fn windows_let_go_of_what_no_query_sees() {
    assert_eq!([0, 99].map(|p| first_visible(0, p)), [0, 0]);
    assert_eq!([0, 9, 10, 99].map(|p| first_visible(10, p)), [0, 0, 1, 90]);
    assert_eq!(first_visible(u32::MAX, u32::MAX), 1);
    // The slack is 64: blocks of 32 go when the window's first position is 64 further.
    assert_eq!([104, 105, 136, 137].map(|p| first_kept(10, p)), [0, 1, 1, 2].map(|b| b), "windows of 10");
    let mut g = group(10, 8);
    let mut t = BlockTable::default();
    extend(&mut t, &mut g, 5);
    t.all_sent();
    t.drop_before(&mut g, 2);
    assert_eq!((t.first, t.end(), g.used()), (2, 5, 3));
    assert_eq!(t.unsent(), (5, [].as_slice()));
    extend(&mut t, &mut g, 6);
    // The blocks that were given back are used again.
    assert_eq!(t.unsent().0, 5);
    assert!(t.blocks[3] < 2);
    t.drop_from(&mut g, 3);
    assert_eq!((t.first, t.end(), g.used(), t.unsent().1.len()), (2, 3, 1, 0));
    t.drop_from(&mut g, 0);
    assert_eq!((t.first, t.end(), g.used()), (0, 0, 0));
}

#[test]
fn only_what_changed_is_sent() {
    let mut g = group(0, 8);
    let mut t = BlockTable::default();
    extend(&mut t, &mut g, 3);
    assert_eq!(t.unsent(), (0, [0, 1, 2].as_slice()));
    t.all_sent();
    extend(&mut t, &mut g, 4);
    assert_eq!(t.unsent(), (3, [3].as_slice()));
    // Given back before it was sent, and taken again: still to be sent.
    t.all_sent();
    t.drop_from(&mut g, 2);
    extend(&mut t, &mut g, 3);
    assert_eq!(t.unsent().0, 2);
}

/// With promises kept, there is always a block left for a sequence below its own.
#[test]
fn shared_blocks_are_promised_once() {
    let mut g = group(0, 0);
    g.promised = 8;
    g.grow(g.wanted(0));
    let mut parent = BlockTable::default();
    extend(&mut parent, &mut g, 4);
    // A fork that shares three whole blocks and a part of the fourth.
    let wanted = g.wanted(0) + 8 - 3;
    g.grow(wanted);
    g.promised += 8;
    let mut child = share(&parent, &mut g, 4);
    assert_eq!((g.blocks(), g.used(), g.held), (13, 4, 8));
    assert!(g.wanted(1) <= g.blocks(), "the copy of the fourth is paid for");
    let copy = g.take().expect("a block for the copy");
    let old = std::mem::replace(&mut child.blocks[3], copy);
    g.release(old);
    assert!(!g.is_shared(parent.blocks[3]) && g.is_shared(parent.blocks[2]));
    // Both fill up.
    extend(&mut parent, &mut g, 8);
    extend(&mut child, &mut g, 8);
    assert_eq!((g.used(), g.wanted(0)), (13, 13));
    // The parent begins anew: sharing ends, and the pool must grow before it fills up again.
    parent.drop_from(&mut g, 0);
    assert_eq!((g.used(), g.wanted(0)), (8, 16));
    g.grow(g.wanted(0));
    extend(&mut parent, &mut g, 8);
    assert_eq!(g.used(), 16);
    // In a window nothing is saved: both may slide on without asking.
    let mut g = group(40, 0);
    g.promised = 16;
    g.grow(g.wanted(0));
    let mut parent = BlockTable::default();
    extend(&mut parent, &mut g, 4);
    let _child = share(&parent, &mut g, 4);
    assert_eq!(g.wanted(0), 16);
}
