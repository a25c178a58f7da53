//! Holds events that come beside the ring buffers until their time has come.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::event::Event;

/// Events by time; those of one time in the order they came.
#[derive(Default)]
pub struct Order {
    waiting: BinaryHeap<Reverse<Waiting>>,
    pushed: u64,
}

struct Waiting {
    time_ns: u64,
    turn: u64,
    event: Event,
}

impl Order {
    /// Holds an event.
    pub fn push(&mut self, event: Event) {
        self.pushed += 1;
        self.waiting.push(Reverse(Waiting {
            time_ns: event.time_ns,
            turn: self.pushed,
            event,
        }));
    }

    /// Delivers every held event that happened before `time_ns`, in order.
    pub fn before(&mut self, time_ns: u64, deliver: &mut dyn FnMut(Event)) {
        while self
            .waiting
            .peek()
            .is_some_and(|Reverse(first)| first.time_ns < time_ns)
        {
            if let Some(Reverse(first)) = self.waiting.pop() {
                deliver(first.event);
            }
        }
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time_ns, self.turn).cmp(&(other.time_ns, other.turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    #[test]
    fn events_wait_for_their_time_and_keep_their_order() {
        let event = |time_ns, pid| Event {
            time_ns,
            pid,
            tid: 0,
            kind: EventKind::End,
        };
        let mut order = Order::default();
        for (time, pid) in [(30, 1), (10, 2), (10, 3), (20, 4)] {
            order.push(event(time, pid));
        }
        let mut seen = Vec::new();
        order.before(20, &mut |event| seen.push(event.pid));
        assert_eq!(seen, [2, 3]);
        order.before(u64::MAX, &mut |event| seen.push(event.pid));
        assert_eq!(seen, [2, 3, 4, 1]);
    }
}
