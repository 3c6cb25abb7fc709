//! The store, put to the test.
