//! SQS: queues with visibility, redelivery and receipt handles.
