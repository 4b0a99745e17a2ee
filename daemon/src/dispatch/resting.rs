//! Lanes that begin nothing for a while: the circuit of their destination is open, or a write of
//! theirs may yet land.

use std::time::Duration;

use super::key_queue::QueuedEvent;
use super::{Completion, Dispatch};
use crate::ledger::records::TargetKey;

impl Dispatch {
    /// Gives back what can't be worked on for now, or keeps it for so long where it came from a
    /// work queue: one that gets a message anew shows it at once.
    pub(super) async fn turned_away(
        &mut self,
        target: &TargetKey,
        tickets: Vec<QueuedEvent>,
        delay: Duration,
    ) {
        let is_kept = self.engine.work_queues.are_used() && !self.deliveries.is_closed();
        match self.targets.get_mut(target).filter(|_| is_kept) {
            Some(work) => {
                work.rest_with(tickets);
                self.wake_after(target, delay);
            }
            None => {
                self.close(&tickets, |message| {
                    message.given_back(message.redelivery_delay(delay))
                })
                .await;
            }
        }
    }

    /// Gives back what waits for a destination to answer: a drain does not wait for that.
    pub(super) async fn give_back_resting(&mut self) {
        let resting = self.targets.extract_if(.., |_, work| work.is_resting());
        let tickets: Vec<QueuedEvent> = resting
            .flat_map(|(_, mut work)| work.take_waiting())
            .collect();
        self.close(&tickets, |message| message.given_back(Duration::ZERO))
            .await;
    }

    pub(super) fn wake_after(&mut self, target: &TargetKey, delay: Duration) {
        let (target, halt) = (target.clone(), self.halt.clone());
        self.running.spawn(async move {
            let _halted = halt.run_until_cancelled(tokio::time::sleep(delay)).await;
            Completion::Drained(target)
        });
    }
}
