//! Changes a store, and says what became of each change. `changer ADDRESS BEFORE CHANGES`: after BEFORE changes (when there
//! are any, before the store is opened else) it says "ready" and waits for a line.
#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
fn main() {
    use std::io::{Write, stdin};

    use durability::change_in;
    use scsi_pr_store::open;

    // Each line is one write(2).
    let say = |text: &str| std::io::stdout().write_all(format!("{text}\n").as_bytes()).expect("somebody listens");
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("the address of a store");
    let mut number = || arguments.next().and_then(|text| text.parse::<u32>().ok()).expect("a number");
    let (before, changes) = (number(), number());
    let wait = || {
        say("ready");
        stdin().read_line(&mut String::new()).expect("a line");
    };

    let store = if before == 0 {
        wait();
        // What fails once is tried again, as a service manager would.
        open(&address).or_else(|error| {
            say(&format!("unopened {:?} {error}", error.fault()));
            open(&address)
        })
    } else {
        open(&address)
    };
    let store = match store {
        Ok(store) => store,
        Err(error) => return say(&format!("unopened {:?} {error}", error.fault())),
    };
    (0..before).for_each(|_| change_in(&*store).expect("kept"));
    if before > 0 {
        wait();
    }
    for _ in 0..changes {
        match change_in(&*store) {
            Ok(()) => say("kept"),
            Err(error) => say(&format!("failed {:?} {error}", error.fault())),
        }
    }
    drop(store);
    say("closed");
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {}
