//! Changes a store, and reports the result of each change on standard output.
//!
//! `changer ADDRESS BEFORE CHANGES` opens the store, makes BEFORE changes, prints "ready", waits for a line, and makes
//! CHANGES more. If BEFORE is 0, it opens the store after the line.
#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
fn main() {
    use std::io::{Write, stdin};

    use durability::change_in;
    use scsi_pr_store::open;

    // Each line is one write(2).
    let print =
        |text: &str| std::io::stdout().write_all(format!("{text}\n").as_bytes()).expect("the test reads the output");
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("the address of a store");
    let mut number = || arguments.next().and_then(|text| text.parse::<u32>().ok()).expect("a number");
    let (before, changes) = (number(), number());
    let wait = || {
        print("ready");
        stdin().read_line(&mut String::new()).expect("a line");
    };

    let store = if before == 0 {
        wait();
        // A service manager would try again too.
        open(&address).or_else(|error| {
            print(&format!("unopened {:?} {error}", error.fault()));
            open(&address)
        })
    } else {
        open(&address)
    };
    let store = match store {
        Ok(store) => store,
        Err(error) => return print(&format!("unopened {:?} {error}", error.fault())),
    };
    (0..before).for_each(|_| change_in(&*store).expect("an acknowledged change"));
    if before > 0 {
        wait();
    }
    for _ in 0..changes {
        match change_in(&*store) {
            Ok(()) => print("acknowledged"),
            Err(error) => print(&format!("failed {:?} {error}", error.fault())),
        }
    }
    drop(store);
    print("closed");
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {}
