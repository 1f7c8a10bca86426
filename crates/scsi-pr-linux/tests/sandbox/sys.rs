//! System calls that have no safe wrapper, to see that the sandbox forbids them.

use std::io;

/// Makes a system call with integers, or with addresses that the kernel must not get to read: the error number.
pub(crate) fn attempt(number: i64, arguments: [i64; 4]) -> Option<i32> {
    let [a, b, c, d] = arguments;
    // SAFETY: each call of the test is either refused before the kernel looks at its arguments, or gets null pointers and
    // integers, with which it cannot touch memory of this process.
    let result = unsafe { nix::libc::syscall(number, a, b, c, d) };
    (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
