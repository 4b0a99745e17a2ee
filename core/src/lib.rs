//! The rules of replication: pure functions over what was read, without I/O, clock or randomness.
//!
//! In the order data flows:
//!
//! - `object`: buckets, keys, versions, ETags
//! - `event`: messages become events
//! - `rule`: which objects go where, and how
//! - `plan`: the next thing to append at a destination
//! - `deadline`: how long a request may take, and may take effect
//! - `stamp`: the origin of a replica, in its metadata
//! - `claim`: how far a stamp is believed
//! - `parts`: how an object is cut for a multipart upload
//! - `operation`: the operations that can fail
//! - `failure`: what went wrong, and what to do about it
//! - `retry`: how long to wait before trying again
//! - `concurrency_limit`: how many requests may be under way at a dependency that throttles
//! - `circuit`: whether to send requests to a dependency that does not answer
//! - `suspects`: which keys fail by themselves, while their bucket serves other keys

pub mod circuit;
pub mod claim;
pub mod concurrency_limit;
pub mod deadline;
pub mod event;
pub mod failure;
pub mod object;
pub mod operation;
pub mod parts;
pub mod plan;
pub mod retry;
pub mod rule;
pub mod stamp;
pub mod suspects;
