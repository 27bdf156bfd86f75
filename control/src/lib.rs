//! Lunette.
