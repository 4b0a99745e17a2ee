//! How much is done at once, and what several tasks do together.
//!
//! - `concurrency`: task slots for each dependency, its AIMD limit and its circuit
//! - `rates`: limits of bandwidth and requests; `budget`: memory for bodies
//! - `single_flight`: one read for several destinations; `batcher`: one list for several keys

pub(crate) mod batcher;
pub(crate) mod budget;
pub(crate) mod concurrency;
pub(crate) mod rates;
pub(crate) mod single_flight;
