// The experts of a row whose logits an earlier stage of a chain sends. The host declares ROUTE_AT, the first of their words (two a logit, as chain_y has
// it), ROUTE_EXPERTS, ROUTE_USED and the bits of ROUTE_SCALE. The caller declares WG.
#import chain_y
#import route
fn route_receive(t: Thread, row: u32) {
    for (var e = t.lid; e < ROUTE_EXPERTS; e += WG) {
        let at = ROUTE_AT + 2u * (row * ROUTE_EXPERTS + e);
        route_take(e, bitcast<u32>(chain_take_y(at, chain_ask_y(at))));
    }
    route(t, ROUTE_EXPERTS, ROUTE_USED, bitcast<f32>(ROUTE_SCALE));
}
