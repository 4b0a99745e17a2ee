//! What `deploy/` has to install the daemon with, used as it is meant to be.

mod cloudformation;
mod container;
mod systemd;
