//! The face to the sender.
