//! Certificates and peers for the tests of this module.
