//! A balancer to run and script.
fn main() {}
