//! The configuration file: read as written, checked as a whole, handed on as used.
//!
//! In the order data flows:
//!
//! - `schema` lists every table and key, as written, and turns TOML into them
//! - `values` reads single values: sizes, durations, ARNs, URLs and the other names that AWS gives
//! - `settings` is the file as used, with every default filled in
//! - `import` translates a replication configuration of S3 into such a file
//! - `policies` are the least-privilege documents that a configuration needs
//! - `diagnostics` is what is wrong with a file: everything, in one go

mod diagnostics;
mod import;
pub mod policies;
mod schema;
mod settings;
mod values;

pub use diagnostics::{Invalid, Problem};
pub use import::{ImportError, ImportOptions, import};
pub use schema::line_of;
pub use settings::accounts::{Account, ConditionalWrites, Service, ServiceEndpoints};
pub use settings::queues::Queue;
pub use settings::{ApiToken, Settings, load, open_file, parse, read_text};
pub use values::{Partition, likely_partition, nearest_name, partition_of, suggest_nearest};
