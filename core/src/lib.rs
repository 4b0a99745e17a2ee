//! The rules of replication: pure functions over what was read, without I/O, clock or randomness.
//!
//! In the order data flows:
//!
//! - `object`: buckets, keys, versions, ETags, and how an object is cut for a multipart upload
//! - `event`: messages become events
//! - `rule`: which objects go where, and how
//! - `plan`: the next thing to append at a destination
//! - `stamp`: the origin of a replica, in its metadata, and how far it is believed
//! - `compare`: how the histories of a key differ at both ends
//! - `failure`: what went wrong in which operation, and what to do about it
//! - `retry`: how long a request may take and may take effect, and the wait before the next; how many
//!   may be under way at a dependency that throttles, whether to send any to one that does not
//!   answer, and which keys fail by themselves

pub mod compare;
pub mod event;
pub mod failure;
pub mod object;
pub mod plan;
pub mod retry;
pub mod rule;
pub mod stamp;

pub use object::parts;
