//! The loop over channels in place of the device and the socket.
