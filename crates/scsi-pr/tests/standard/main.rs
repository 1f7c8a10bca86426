//! The tables of the standard (SPC-4 5.13, 6.15, 6.16), row by row, on [`Reservations`](scsi_pr::Reservations).
//!
//! Each row has the commands before, one command, its answer, and the state afterwards: registrants with their keys in order, the
//! reservation, and unit attentions. The numbers of tables are those of SPC-4 revision 36f.

mod attentions;
mod conflicts;
mod length;
mod losses;
mod migration;
mod moving;
mod preempting;
mod reading;
mod registering;
mod reserving;
mod spc2;
mod unit;
