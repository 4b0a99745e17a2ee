//! The configuration file: read as written, checked as a whole, handed on as used.
//!
//! In the order data flows:
//!
//! - `reader` turns TOML into fields with their positions in the file
//! - `schema` lists every table and key, as written
//! - `units` reads sizes, rates, durations and moments as they are written
//! - `names` recognises ARNs, URLs and the other names that AWS gives
//! - `settings` is the file as used, with every default filled in
//! - `problem` is what is wrong with a file: everything, in one go

mod aws_names;
mod diagnostics;
mod reader;
mod schema;
mod settings;
mod units;

pub use aws_names::suggest_nearest;
pub use diagnostics::{Invalid, Problem};
pub use settings::accounts::{Account, ConditionalWrites, Service, ServiceEndpoints};
pub use settings::queues::Queue;
pub use settings::{Settings, load, parse};
