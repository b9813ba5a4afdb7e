//! Hosts that vanish without a word, and wires that delay, lose and reorder.
//!
//! Each test has hosts of its own: network namespaces of this machine, on a switch that a thread of the test plays.
//! That takes Linux, root, and `ip` of iproute2. Elsewhere each test says that it is skipped, or fails if
//! `TINYLB_REQUIRE_NETNS=1` asks for it.

#[cfg(target_os = "linux")]
#[cfg_attr(
    not(feature = "socket2"),
    allow(dead_code, reason = "without keepalive, `silence` is left out")
)]
mod cast;
#[cfg(target_os = "linux")]
mod dialling;
#[cfg(target_os = "linux")]
mod frame;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod outage;
#[cfg(target_os = "linux")]
mod removal;
#[cfg(target_os = "linux")]
mod rough_wire;
#[cfg(all(target_os = "linux", feature = "socket2"))]
mod silence;
mod skip;
#[cfg(target_os = "linux")]
mod switch;

#[cfg(not(target_os = "linux"))]
#[test]
fn hosts_that_vanish() {
    skip::say("network namespaces are Linux's");
}
