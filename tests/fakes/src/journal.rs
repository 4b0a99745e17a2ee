//! Every request in the order of its arrival.
