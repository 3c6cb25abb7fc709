//! Layers, enforced.
