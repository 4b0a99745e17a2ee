//! Lanes that begin nothing for a while: the circuit of their destination is open, or a write of
//! theirs may yet land.

use std::time::Duration;

use super::work::Ticket;
use super::{Dispatch, Event};
use crate::ledger::records::Lane;

impl Dispatch {
    /// Gives back what can't be worked on for now, or keeps it for so long where it came from a work queue: one that gets a
    /// message anew shows it at once.
    pub(super) async fn turned_away(&mut self, lane: &Lane, tickets: Vec<Ticket>, delay: Duration) {
        let is_kept = self.engine.work_queues.are_used() && !self.deliveries.is_closed();
        match self.lanes.get_mut(lane).filter(|_| is_kept) {
            Some(work) => {
                work.rest(tickets);
                self.wake_after(lane, delay);
            }
            None => self.close(&tickets, |message| message.given_back(message.patience(delay))).await,
        }
    }

    /// Gives back what waits for a destination to answer: a drain does not wait for that.
    pub(super) async fn give_back_resting(&mut self) {
        let resting = self.lanes.extract_if(.., |_, work| work.is_resting());
        let tickets: Vec<Ticket> = resting.flat_map(|(_, mut work)| work.take_waiting()).collect();
        self.close(&tickets, |message| message.given_back(Duration::ZERO)).await;
    }

    pub(super) fn wake_after(&mut self, lane: &Lane, delay: Duration) {
        let (lane, halt) = (lane.clone(), self.halt.clone());
        self.running.spawn(async move {
            let _halted = halt.run_until_cancelled(tokio::time::sleep(delay)).await;
            Event::Landed(lane)
        });
    }
}
