//! `print!` and `println!` for this program. A closed standard output, as with `cargo xtask prose | head`, is no error for
//! them; the macros of the standard library panic.

macro_rules! print {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = write!(std::io::stdout(), $($text)*);
    }};
}

macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
