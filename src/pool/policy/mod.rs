//! Policies: which of the backends that are available a client gets first.
//!
//! A policy is one file with a [`Selector`]. It knows members only by their positions in the order
//! of the pool, and neither clients nor sockets. A client whose first backend fails gets the next
//! in key order, whatever the policy. To add a policy: write the file, and add a variant to
//! [`Policy`] and a line to `Policy::selector`.

mod least_connections;
mod round_robin;

use self::least_connections::LeastConnections;
use self::round_robin::RoundRobin;
use super::position_set::PositionSet;

/// How clients are spread over the backends.
///
/// No policy picks a backend that is held, or one that is [ejected](crate::Ejection) while another
/// is left. A client whose backend fails gets the next in key order that it has not tried. Each
/// attempt counts as a pick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Each backend in turn, in key order. Where [weights](crate::BackendSet::set_weight) differ,
    /// each gets its share, spread evenly: with weights 3 and 1, three clients of four.
    #[default]
    RoundRobin,
    /// The backend with the fewest clients for its [weight](crate::BackendSet::set_weight), dials
    /// in flight included. Backends that are equal take turns in key order.
    ///
    /// Clients of one target count for every key that names it. Suits connections that last long.
    LeastConnections,
}

impl Policy {
    pub(super) fn selector(self) -> Box<dyn Selector> {
        match self {
            Self::RoundRobin => Box::new(RoundRobin::default()),
            Self::LeastConnections => Box::new(LeastConnections::default()),
        }
    }
}

/// What a policy is told of a member when the set has changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberInfo {
    /// Its position in the order before, if it was there.
    pub(super) before: Option<usize>,
    /// 0 if it is held. It is not available then.
    pub(super) weight: u32,
    /// The clients of its target.
    pub(super) load: usize,
    pub(super) is_available: bool,
}

/// Picks for clients that have tried nothing yet. It is told everything that its choice may depend
/// on.
///
/// Each call except `replace` should take O(log n).
pub(super) trait Selector: Send {
    /// The set has changed, and with it every position.
    fn replace(&mut self, members: Vec<MemberInfo>);

    /// Picks one of the available members. Those that are equal are preferred in order from the
    /// position `from` on, wrapping around.
    fn pick(&mut self, available: &PositionSet, from: usize) -> Option<usize>;

    /// A member was picked without `pick`, for a client that has tried others or has no choice.
    fn picked_otherwise(&mut self, position: usize) {
        let _ = position;
    }

    /// A member has become available, or no longer is.
    fn set_available(&mut self, position: usize, is_available: bool) {
        let _ = (position, is_available);
    }

    /// The target of these members has another number of clients.
    fn set_load(&mut self, positions: &mut dyn Iterator<Item = usize>, load: usize) {
        let _ = (positions, load);
    }
}

#[cfg(test)]
mod tests;
