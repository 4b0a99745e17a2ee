//! What `deploy/` has to install the daemon with, used as it is meant to be.

mod container;
mod systemd;
