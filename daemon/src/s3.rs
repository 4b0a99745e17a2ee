//! S3 as the daemon speaks it.
//!
//! - `accounts`: clients of each account, what an endpoint can do, and the one place that classifies
//!   errors, those of SQS included
//! - `client`: requests on the path of each object, without the SDK
//! - `checksum`: the algorithms of S3; `xml`: its answers

pub(crate) mod accounts;
pub(crate) mod checksum;
pub(crate) mod client;
pub(crate) mod xml;
