//! Media of disks on real file systems: what an initiator sees when the file changes, and what a failing or slow file
//! system does to the promises of a medium.

mod disk;
mod faults;
mod slow_file;
