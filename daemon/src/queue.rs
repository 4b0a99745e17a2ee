//! Messages of SQS: received, sent on to work queues by the router, and deleted, returned or sent to
//! the dead-letter queue at the end.

pub(crate) mod ack;
pub(crate) mod message;
pub(crate) mod receiver;
pub(crate) mod router;
