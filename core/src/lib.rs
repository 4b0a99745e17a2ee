//! The rules of replication: pure functions over what was read, without I/O, clock or randomness.
//!
//! In the order data flows:
//!
//! - `object`: buckets, keys, versions, ETags
//! - `sequencer`: the order among events of one key
//! - `event`: messages become events
//! - `rule`: which objects go where, and how
//! - `plan`: the next thing to append at a destination
//! - `deadline`: how long a request may take, and may take effect
//! - `stamp`: the origin of a replica, in its metadata, and how far it is believed
//! - `parts`: how an object is cut for a multipart upload
//! - `failure`: what went wrong in which operation, and what to do about it
//! - `retry`: how long to wait before trying again
//! - `concurrency_limit`: how many requests may be under way at a dependency that throttles
//! - `circuit`: whether to send requests to a dependency that does not answer
//! - `suspects`: which keys fail by themselves, while their bucket serves other keys

pub mod circuit;
pub mod concurrency_limit;
pub mod deadline;
pub mod event;
pub mod failure;
pub mod object;
pub mod parts;
pub mod plan;
pub mod retry;
pub mod rule;
pub mod sequencer;
pub mod stamp;
pub mod suspects;

// The modules that these were before, until their importers are adapted.
pub use failure as operation;
pub use stamp as claim;
