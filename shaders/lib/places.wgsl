// Where a slot's recurrent states stand: the one before the next evaluation (none: zeros), and where the one after it goes (none: nowhere).
const NO_PLACE: u32 = 0xffffffffu;

struct Places {
    before: u32,
    after: u32,
}
