//! Least connections: the member with the fewest clients for its weight.

use std::cmp::Ordering;

use super::super::min_tree::MinTree;
use super::super::position_set::PositionSet;
use super::{MemberInfo, Selector};

/// The clients of a member, to be compared by unit of weight.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: usize,
    weight: u32,
}

#[derive(Default)]
pub(super) struct LeastConnections {
    loads: Vec<Load>,
    /// Those of the members that are available.
    available: MinTree<Load>,
}

impl Selector for LeastConnections {
    fn replace(&mut self, members: Vec<MemberInfo>) {
        let load = |member: &MemberInfo| Load { clients: member.load, weight: member.weight };
        self.loads = members.iter().map(load).collect();
        let keys = members.iter().map(|member| member.is_available.then(|| load(member)));
        self.available = MinTree::new(keys.collect());
    }

    fn pick(&mut self, _: &PositionSet, from: usize) -> Option<usize> {
        self.available.min_from(from, self.loads.len())
    }

    fn set_available(&mut self, position: usize, is_available: bool) {
        self.available.set(position, is_available.then_some(self.loads[position]));
    }

    fn set_load(&mut self, positions: &mut dyn Iterator<Item = usize>, clients: usize) {
        for position in positions {
            self.loads[position].clients = clients;
            if self.available.contains(position) {
                self.available.set(position, Some(self.loads[position]));
            }
        }
    }
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> Ordering {
        let product = |load: &Self, weight: u32| load.clients as u128 * u128::from(weight);
        product(self, other.weight).cmp(&product(other, self.weight))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Load {}
