//! The fakes behind a socket.
