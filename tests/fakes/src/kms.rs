//! The keys of KMS and the states they can be in.
