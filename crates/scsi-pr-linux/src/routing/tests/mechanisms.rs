//! Which mechanisms a command reaches, and what becomes of their answers.

use super::*;

/// `table.txt` holds the routes that the separate policies had before they became one table.
#[test]
fn every_class_opcode_access_and_privilege_has_its_route() {
    let Ok(writable) = File::options().read(true).write(true).open("/dev/loop0") else { return };
    let Ok(read_only) = File::open("/dev/loop0") else { return };
    let mut table = Vec::new();
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        for (access, device) in [("read-write", &writable), ("read-only", &read_only)] {
            for (privilege, permits) in [("permitted", true), ("not permitted", false)] {
                let mut row = BTreeMap::new();
                for command in all_commands() {
                    let opcode = command.command().opcode();
                    // The driver of a loop device does not know SG_IO, and there is nothing to clean up.
                    let unsupported = opcode != Opcode::Cleanup;
                    recorded.recording.answers.lock().unwrap().clear();
                    if unsupported {
                        recorded.answer(Mechanism::SgIoWhereSupported, Err(Declined::Unsupported));
                    }
                    if !permits {
                        recorded.answer(Mechanism::Nvme, Err(not_permitted()));
                        recorded.answer(Mechanism::BlockIoctl, Err(not_permitted()));
                    }
                    let (attempts, completion) = recorded.execute(device, command.command());
                    let names: Vec<_> = attempts.into_iter().filter_map(name).collect();
                    let refused = "CHECK CONDITION, sense 05/20/00 (INVALID COMMAND OPERATION CODE)";
                    let answer = completion.to_string().replace(refused, "05/20/00");
                    let route = if names.is_empty() { answer } else { names.join(", ") };
                    // All service actions of an opcode go one way.
                    let column = [Opcode::ReserveIn, Opcode::ReserveOut, Opcode::Cleanup].map(|other| other == opcode);
                    assert_eq!(*row.entry(column.map(|is| !is)).or_insert_with(|| route.clone()), route);
                }
                let row: Vec<_> = row.into_values().collect();
                table.push(format!("{what:?} | {access} | {privilege} | {}", row.join(" | ")));
            }
        }
    }
    assert_eq!(table.join("\n"), include_str!("../table.txt").trim_end());
}

/// The name of a mechanism in `table.txt`.
fn name(mechanism: Mechanism) -> Option<&'static str> {
    Some(match mechanism {
        Mechanism::SgIo => "SG_IO",
        Mechanism::SgIoWhereSupported => return None,
        Mechanism::Nvme => "NVMe",
        Mechanism::NvmeWorker => "NVMe worker",
        Mechanism::BlockIoctl => "IOC_PR",
        Mechanism::BlockIoctlWorker => "IOC_PR worker",
        Mechanism::MultipathReader | Mechanism::MultipathWorker => "multipath",
    })
}

fn completions() -> impl Strategy<Value = Completion> {
    let statuses = any::<u8>().prop_filter_map("a status", scsi_pr::Status::from_byte).prop_map(Completion::Status);
    let checks = any::<[u8; 3]>().prop_map(|[key, asc, ascq]| {
        Completion::check(SenseCode { key: scsi_pr::SenseKey::from_byte(key), asc, ascq })
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..32).prop_map(Completion::Good), statuses, checks]
}

proptest! {
    #[test]
    fn command_that_is_answered_here_goes_to_no_worker(command in commands(), answer in completions()) {
        for mechanism in [Mechanism::Nvme, Mechanism::BlockIoctl] {
            let recorded = Recorded::new(Sysfs::default());
            recorded.answer(mechanism, Ok(answer.clone()));
            let steps = if mechanism == Mechanism::Nvme { NVME } else { &OTHER[1..] };
            let answered = recorded.steps(steps, command.command());
            prop_assert_eq!(answered.unwrap(), answer.clone());
            prop_assert_eq!(recorded.attempts(), [mechanism]);
        }
    }

    #[test]
    fn command_that_is_not_permitted_runs_in_a_worker_once(command in commands(), answer in completions()) {
        let recorded = Recorded::new(Sysfs::default());
        recorded.answer(Mechanism::Nvme, Err(not_permitted()));
        recorded.answer(Mechanism::NvmeWorker, Ok(answer.clone()));
        prop_assert_eq!(recorded.steps(NVME, command.command()).unwrap(), answer);
        prop_assert_eq!(recorded.attempts(), NVME);
    }
}

impl Recorded {
    fn steps(&self, steps: Steps, command: Command<'_>) -> Result<Completion, Error> {
        self.router.run(steps, File::open("/dev/null").unwrap().as_fd(), command)
    }
}

#[test]
fn command_that_nothing_may_run_is_terminated_and_logged_once() {
    let recorded = Recorded::new(Sysfs::default());
    let log = Log::at(tracing::Level::WARN);
    let list = [0; 24];
    for _ in 0..2 {
        recorded.answer(Mechanism::Nvme, Err(not_permitted()));
        let failed = Error::not_run("start a worker").because("the monitor is gone");
        recorded.answer(Mechanism::NvmeWorker, Err(Declined::Failed(failed)));
        let answer = log.during(|| recorded.steps(NVME, reserve_out(1, &list)));
        assert_eq!(answer.unwrap(), Completion::check(SenseCode::IO_PROCESS_TERMINATED));
    }
    let [line] = &log.events()[..] else { panic!("{:?}", log.events()) };
    for part in ["RESERVE", "not run", "CAP_SYS_ADMIN", "cannot start a worker: the monitor is gone"] {
        assert!(line.message.contains(part), "{part}: {}", line.message);
    }
}

#[test]
fn command_that_a_worker_may_have_run_is_not_called_refused() {
    let recorded = Recorded::new(Sysfs::default());
    recorded.answer(Mechanism::Nvme, Err(not_permitted()));
    recorded.answer(Mechanism::NvmeWorker, Err(Declined::Failed(Error::outcome_unknown("read the answer"))));
    assert!(recorded.steps(NVME, reserve_out(1, &[0; 24])).unwrap_err().may_have_run());
}

#[test]
fn device_without_scsi_commands_is_asked_by_ioctl() {
    let workers = workers(&(Arc::new(Recorder::good()) as Arc<dyn PrManager>));
    let router = DeviceRouter::new(workers);
    let list = keys(0, 1);
    let run = |device: &dyn AsFd| {
        [reserve_in(0), reserve_out(0, &list)].map(|command| router.run(OTHER, device.as_fd(), command).unwrap())
    };
    // A character device knows neither.
    let none = || Completion::check(SenseCode::INVALID_OPCODE);
    assert_eq!(run(&File::open("/dev/null").unwrap()), [none(), none()]);
    // Another error may be SCSI's, so it is the answer.
    let failed = || Completion::check(SenseCode::IO_PROCESS_TERMINATED);
    assert_eq!(run(&open("/dev/null", OFlags::PATH, Mode::empty()).unwrap()), [failed(), failed()]);
    let cleaned = router.run(OTHER, File::open("/dev/null").unwrap().as_fd(), Command::cleanup()).unwrap();
    assert_eq!(cleaned, Completion::Good(Vec::new()));
}

#[test]
fn disk_without_reservations_says_so_whatever_its_driver_says() {
    let router = DeviceRouter::new(workers(&(Arc::new(Recorder::good()) as Arc<dyn PrManager>)));
    let list = keys(0, 1);
    for name in ["loop0", "zram0", "vda", "nbd0"] {
        // Not every machine has them, and not every user may open them.
        let Ok(device) = File::options().read(true).write(true).open(format!("/dev/{name}")) else { continue };
        let none = || Completion::check(SenseCode::INVALID_OPCODE);
        let [read, registered] =
            [reserve_in(0), reserve_out(0, &list)].map(|command| router.run(OTHER, device.as_fd(), command).unwrap());
        assert_eq!(registered, none(), "{name}");
        // Before Linux 6.19 keys cannot be read this way.
        assert!([none(), Completion::check(SenseCode::INVALID_FIELD_IN_CDB)].contains(&read), "{name}: {read}");
    }
}

#[test]
fn chosen_mechanism_runs_all_commands_of_descriptors_that_may_write() {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let read_only = File::open("/dev/null").unwrap();
    for (choice, steps) in [
        (Choice::SgIo, [Mechanism::SgIo; 3]),
        (Choice::Nvme, [Mechanism::Nvme; 3]),
        (Choice::BlockIoctl, [Mechanism::BlockIoctl; 3]),
        (Choice::Multipath, [Mechanism::MultipathReader, Mechanism::MultipathWorker, Mechanism::MultipathWorker]),
    ] {
        let recording = Recording::default();
        let router = DeviceRouter::over(Box::new(recording.clone()), Sysfs::at("/nonexistent")).with_choice(choice);
        let recorded = Recorded { router, recording };
        let list = keys(1, 2);
        for (command, mechanism) in [reserve_in(0), reserve_out(0, &list), Command::cleanup()].into_iter().zip(steps) {
            assert_eq!(recorded.execute(&null, command), (vec![mechanism], Completion::Good(Vec::new())), "{choice:?}");
            let reads = command.opcode() == Opcode::ReserveIn;
            let expected = if reads { (vec![mechanism], Completion::Good(Vec::new())) } else { (vec![], REFUSED) };
            assert_eq!(recorded.execute(&read_only, command), expected, "{choice:?}");
        }
    }
}
