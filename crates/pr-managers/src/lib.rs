//! Persistent reservation managers that reach devices, and the policies around them.
