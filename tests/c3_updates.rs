//! Chapter 3 of the contract: updates.

mod util;

use util::*;

#[test]
fn c3_2_a_removed_target_is_closed_on_both_sides() {
    let (one, two) = (TestBackend::echo("one"), TestBackend::echo("two"));
    let balancer = Balancer::start(set([("a", one.addr), ("b", two.addr)]));
    let (mut gone, tag) = balancer.tagged_client();
    assert_eq!(tag, "one");
    let (mut stays, tag) = balancer.tagged_client();
    assert_eq!(tag, "two");

    let applied = balancer.update(set([("b", two.addr)]));

    assert_eq!((applied.closed, applied.cancelled, applied.backends), (1, 0, 1));
    assert_cut(&mut gone);
    assert_echo(&mut stays, b"still here");
}
