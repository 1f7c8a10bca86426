//! The two orders to device mapper for which there is no other interface. They need root.

mod sys;

pub(super) use sys::{fail_path, resume};
