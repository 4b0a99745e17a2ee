//! What tasks need of SQS while they work: the lease on their messages, and sends to work queues.

pub(crate) mod lease;
pub(crate) mod work_queues;
