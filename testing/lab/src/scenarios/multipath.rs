//! A multipath map of two paths, and another host of the same unit: our managers, put together as the helper will.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use scsi_pr::{Completion, FullStatus, InitiatorPort, Key, Opcode, Reservation, SenseCode, Status, TransportId, Type};

use crate::commands::{
    Request, clear, preempt, read_full_status, read_keys, read_reservation, register, register_aptpl,
    register_ignoring, register_spec_i_pt, release, report_capabilities, reserve, short,
};
use crate::fixture::{AR, CONFLICT, Fixture, GOOD, OTHER, OURS, RO, THEIRS};
use crate::map::{Disk, multipathd, start_multipathd};
use crate::scenario::Scenario;
use crate::system::{run, wait_for};

/// Commands of guests.
pub(super) const ACTIONS: Scenario = Scenario {
    name: "multipath",
    boot: "multipath",
    purpose: "every service action on a multipath map reaches every path, and nothing of another host's",
    run: |lab, report| Fixture::new(lab, report, 2)?.actions(),
};

/// The same on more paths.
pub(super) const FOUR: Scenario = Scenario {
    name: "multipath-four",
    boot: "multipath",
    purpose: "the same on a map of four paths",
    run: |lab, report| Fixture::new(lab, report, 4)?.actions(),
};

/// Two hosts with one key.
pub(super) const SHARED_KEY: Scenario = Scenario {
    name: "multipath-shared-key",
    boot: "multipath",
    purpose: "two hosts with one reservation_key: neither loses its reservation or registration to the other",
    run: |lab, report| Fixture::new(lab, report, 2)?.shared_key(),
};

/// Events of paths.
pub(super) const PATHS: Scenario = Scenario {
    name: "multipath-paths",
    boot: "multipath",
    purpose: "paths that die, come back and come later; a map without paths, and one that is suspended",
    run: |lab, report| Fixture::new(lab, report, 2)?.paths(),
};

/// Mistakes of administrators.
pub(super) const DIAGNOSIS: Scenario = Scenario {
    name: "multipath-diagnosis",
    boot: "multipath",
    purpose: "a missing reservation_key, another one, and a multipathd that hangs or is down are distinct in the log",
    run: |lab, report| Fixture::new(lab, report, 2)?.diagnosis(),
};

/// The last of its boot: it takes a path away.
pub(super) const PORTS: Scenario = Scenario {
    name: "multipath-ports",
    boot: "multipath",
    purpose: "the TransportIDs of other initiators are registered whole where a map has one path, and refused where it has more",
    run: |lab, report| Fixture::new(lab, report, 2)?.ports(),
};

impl<'a> Fixture<'a> {
    fn actions(mut self) -> Result<()> {
        let other_host = &self.map.other_host;
        self.theirs(&register(Key::ZERO, THEIRS))?;

        self.expect(&register(Key::ZERO, OURS), &GOOD);
        let every = [self.all(OURS), vec![(other_host, THEIRS, false)]].concat();
        self.expect_registered("every path is registered", &every)?;
        self.expect_key("0xaaa")?;
        self.expect(&register(Key::ZERO, OURS), &CONFLICT);
        self.expect_registered("and stay so when a second one is refused", &every)?;
        self.report.differs("multipath-padding");
        self.report.differs("multipath-full-status");
        for request in [read_keys(), read_reservation(), report_capabilities(), read_full_status()] {
            self.expect_same(&request)?;
        }

        self.expect(&reserve(OURS, RO), &GOOD);
        self.expect_their_write(true)?;
        self.theirs(&register(THEIRS, Key::ZERO))?;
        self.expect_their_write(false)?;
        self.expect_our_write("whichever path carries it");
        self.expect(&reserve(OURS, RO), &GOOD);
        self.expect_and_log(&reserve(OTHER, RO), &CONFLICT, &["multipathd getprkey", &self.map.name()]);
        self.expect(&reserve(OURS, Type::WriteExclusive), &CONFLICT);
        self.theirs(&register(Key::ZERO, THEIRS))?;
        let (holder, _) = self.holder_and_rest()?;
        let reserved = [self.all_with_holder(OURS, holder), vec![(other_host, THEIRS, false)]].concat();
        self.report.differs("multipath-release");
        // LIO has a conflict where the standard has 05/26/04.
        self.expect(&release(OURS, Type::WriteExclusive), &CONFLICT);
        self.expect_registered("a release of another type changes nothing", &reserved)?;
        self.expect(&release(OURS, RO), &GOOD);
        self.expect_registered("a release leaves every registration", &every)?;

        self.theirs(&reserve(THEIRS, RO))?;
        let theirs = [self.all(OURS), vec![(other_host, THEIRS, true)]].concat();
        self.expect(&release(OURS, RO), &GOOD);
        self.expect(&release(OURS, AR), &GOOD);
        self.expect_registered("a release leaves what another host holds", &theirs)?;
        self.expect(&reserve(OURS, RO), &CONFLICT);
        self.expect(&preempt(OURS, THEIRS, RO), &GOOD);
        self.expect_their_write(false)?;
        let (holder, _) = self.holder_and_rest()?;
        let taken = self.all_with_holder(OURS, holder);
        self.expect_registered("a preempt takes the reservation over", &taken)?;

        self.report.differs("multipath-own-preempt");
        self.expect(&preempt(OURS, OURS, RO), &GOOD);
        let (holder, _) = self.holder_and_rest()?;
        let taken = self.all_with_holder(OURS, holder);
        self.expect_registered("a preempt of the own key leaves every path registered", &taken)?;
        self.expect_our_write("after it");
        self.expect(&register(OURS, OTHER), &GOOD);
        self.expect_key("0xbbb")?;
        let changed = self.all_with_holder(OTHER, holder);
        self.expect_registered("a changed key is changed on every path", &changed)?;
        self.expect(&clear(OTHER), &GOOD);
        self.expect_registered("a clear leaves nothing", &[])?;
        self.expect_key("none")?;

        self.expect(&register_aptpl(OURS), &GOOD);
        self.expect_key("0xaaa:aptpl")?;
        self.expect(&reserve(OURS, RO), &GOOD);
        self.expect(&preempt(OURS, OURS, RO), &GOOD);
        let persistent = self.theirs(&report_capabilities())?;
        let kept = matches!(&persistent, Completion::Good(data) if data[3] & 1 == 1);
        self.report.check(
            "what is to survive a loss of power still is",
            if kept { Ok(()) } else { Err(persistent.to_string()) },
        );
        self.expect(&register(OURS, Key::ZERO), &GOOD);
        self.expect_registered("unregistering leaves nothing", &[])?;

        self.expect(&register_ignoring(OURS), &GOOD);
        self.expect(&reserve(OURS, AR), &GOOD);
        self.expect_our_write("as all registrants are holders");
        self.expect(&release(OURS, AR), &GOOD);
        self.theirs(&register_ignoring(THEIRS))?;
        self.theirs(&reserve(THEIRS, RO))?;
        self.expect(&reserve(OURS, RO), &CONFLICT);
        self.theirs(&register(THEIRS, Key::ZERO))?;
        self.cleanup()
    }

    /// One multipath.conf on both hosts gives both the key `OURS`.
    fn shared_key(mut self) -> Result<()> {
        self.report.differs("multipath-shared-key");
        let (a, b) = (&self.map.paths[0], &self.map.paths[1]);
        let other_host = &self.map.other_host;
        self.map.configure("reservation_key 0xaaa")?;
        for kind in Type::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
            // The other host holds the reservation.
            self.expect(&register_ignoring(OURS), &GOOD);
            self.theirs(&register_ignoring(OURS))?;
            self.theirs(&reserve(OURS, kind))?;
            let theirs = [self.all(OURS), vec![(other_host, OURS, true)]].concat();
            for given in [kind, if kind == RO { Type::WriteExclusive } else { RO }] {
                self.expect(&release(OURS, given), &GOOD);
                self.expect_registered(&format!("{kind}: the other host keeps what it holds"), &theirs)?;
            }
            self.expect(&reserve(OURS, kind), &CONFLICT);
            a.set_alive(false)?;
            self.map.wait_for_paths(1)?;
            self.expect(&release(OURS, kind), &GOOD);
            self.expect_registered(&format!("{kind}: also when one of our paths is dead"), &theirs)?;
            self.expect(&register(OURS, Key::ZERO), &GOOD);
            let alone = [(a, OURS, false), (other_host, OURS, true)];
            self.expect_registered(&format!("{kind}: also when we unregister"), &alone)?;
            a.set_alive(true)?;
            self.map.wait_for_paths(2)?;

            // We hold it by a path that dies.
            self.theirs(&release(OURS, kind))?;
            self.expect(&register_ignoring(OURS), &GOOD);
            self.expect(&reserve(OURS, kind), &GOOD);
            let (holder, _) = self.holder_and_other()?;
            let ours = [self.all_with_holder(OURS, holder), vec![(other_host, OURS, false)]].concat();
            holder.set_alive(false)?;
            self.map.wait_for_paths(1)?;
            let failed = Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE);
            let answer = self.answer(&release(OURS, kind));
            self.report.equal(format!("{kind}: RELEASE when the holder's path is dead"), &failed, &answer);
            self.expect_registered(&format!("{kind}: the other host keeps its key"), &ours)?;
            holder.set_alive(true)?;
            self.map.wait_for_paths(2)?;
            self.logged();
            self.expect(&release(OURS, kind), &GOOD);
            let released = [self.all(OURS), vec![(other_host, OURS, false)]].concat();
            self.expect_registered(&format!("{kind}: released when the path is back"), &released)?;
            self.theirs(&clear(OURS))?;
        }

        self.map.configure("reservation_key file")?;
        self.expect(&register_ignoring(OURS), &GOOD);
        self.theirs(&register_ignoring(OURS))?;
        self.theirs(&reserve(OURS, RO))?;
        self.expect(&register(OURS, OTHER), &GOOD);
        let changed = [(a, OTHER, false), (b, OTHER, false), (other_host, OURS, true)];
        self.expect_registered("we change our key, and the other host keeps its own", &changed)?;
        self.expect(&preempt(OTHER, THEIRS, RO), &CONFLICT);
        self.expect_registered("a preempt of a third key changes nothing", &changed)?;
        self.theirs(&clear(OURS)).map(drop)
    }

    fn cleanup(&mut self) -> Result<()> {
        let answer = self.send_cleanup()?;
        let log = self.logged();
        let outcome = if answer == GOOD && log.is_empty() { Ok(()) } else { Err(format!("{answer}, {log:#?}")) };
        self.report.check("CLEANUP: GOOD", outcome);
        self.expect_registered("CLEANUP unregisters every path", &[])?;
        self.expect_key("none")
    }

    fn paths(mut self) -> Result<()> {
        let other_host = &self.map.other_host;
        self.theirs(&register(Key::ZERO, THEIRS))?;
        let [a, b] = self.map.pair();

        // Dead for a moment, of which multipathd need not notice: the next command that matters sees to it.
        a.set_alive(false)?;
        self.expect(&register(Key::ZERO, OURS), &GOOD);
        self.expect_registered("the path that works is registered", &[(b, OURS, false), (other_host, THEIRS, false)])?;
        a.set_alive(true)?;
        self.map.wait_for_paths(2)?;
        let both = [(a, OURS, false), (b, OURS, false), (other_host, THEIRS, false)];
        self.expect(&reserve(OURS, RO), &GOOD);
        self.expect(&release(OURS, RO), &GOOD);
        self.expect(&register(OURS, OTHER), &GOOD);
        self.expect(&register(OTHER, OURS), &GOOD);
        self.expect_registered("a path that was dead for a moment is registered", &both)?;
        self.expect(&register(OURS, Key::ZERO), &GOOD);

        // Lost before: it is registered when it comes back.
        a.set_alive(false)?;
        self.map.wait_for_paths(1)?;
        self.expect(&register(Key::ZERO, OURS), &GOOD);
        self.expect_registered("the path that works is registered", &[(b, OURS, false), (other_host, THEIRS, false)])?;
        a.set_alive(true)?;
        self.wait_for_registrations("multipathd registers the path that comes back", &both)?;
        self.map.wait_for_paths(2)?;

        // Added later.
        let third = self.map.add_path()?;
        let three = [&both[..], &[(&third, OURS, false)]].concat();
        self.wait_for_registrations("multipathd registers a path that comes later", &three)?;
        self.map.wait_for_paths(3)?;
        self.expect(&register(OURS, OTHER), &GOOD);
        let three = three.map_keys(OTHER);
        self.expect_registered("all three change their key", &three)?;
        self.expect(&register(OTHER, OURS), &GOOD);
        self.map.remove_path(&third)?;
        self.map.wait_for_paths(2)?;
        // Its registration stays with the unit, until a preempt removes it.
        self.expect(&reserve(OURS, RO), &GOOD);
        self.expect(&preempt(OURS, OURS, RO), &GOOD);

        // Lost while it is the holder's: other paths write, the other host does not, release and preempt work.
        self.theirs(&register(THEIRS, Key::ZERO))?;
        let (holder, rest) = self.holder_and_other()?;
        holder.set_alive(false)?;
        self.expect_our_write("when the holder's path is dead");
        self.expect_their_write(false)?;
        self.theirs(&register(Key::ZERO, THEIRS))?;
        self.expect_same(&read_reservation())?;
        self.expect(&release(OURS, RO), &GOOD);
        let released = [(rest, OURS, false), (other_host, THEIRS, false)];
        self.expect_registered(
            "the dead holder's reservation is released, and no other host's key is lost",
            &released,
        )?;
        holder.set_alive(true)?;
        self.wait_for_registrations("the path is registered when it comes back", &both)?;
        self.map.wait_for_paths(2)?;

        self.expect(&reserve(OURS, RO), &GOOD);
        let (holder, rest) = self.holder_and_other()?;
        holder.set_alive(false)?;
        self.map.wait_for_paths(1)?;
        self.expect(&preempt(OURS, OURS, RO), &GOOD);
        let taken = [(rest, OURS, true), (other_host, THEIRS, false)];
        self.expect_registered("a preempt moves the reservation to a path that works", &taken)?;
        holder.set_alive(true)?;
        let taken = [(rest, OURS, true), (holder, OURS, false), (other_host, THEIRS, false)];
        self.wait_for_registrations("the path is registered when it comes back", &taken)?;
        self.map.wait_for_paths(2)?;

        // A host that unregisters with a dead path leaves nothing reserved, and can register again.
        let (holder, _) = self.holder_and_other()?;
        holder.set_alive(false)?;
        self.map.wait_for_paths(1)?;
        self.expect(&register(OURS, Key::ZERO), &GOOD);
        self.expect_registered("nothing is left of who unregisters with a dead path", &[(other_host, THEIRS, false)])?;
        holder.set_alive(true)?;
        self.map.wait_for_paths(2)?;
        self.expect(&register(Key::ZERO, OURS), &GOOD);
        self.expect(&reserve(OURS, RO), &GOOD);
        let (holder, rest) = self.holder_and_other()?;
        let taken = [(holder, OURS, true), (rest, OURS, false), (other_host, THEIRS, false)];

        // The kernel does not know yet which path is dead when it is asked.
        for disk in [a, b] {
            disk.set_alive(false)?;
            for request in [read_keys(), read_full_status()] {
                self.expect_same(&request)?;
            }
            disk.set_alive(true)?;
            self.map.wait_for_paths(2)?;
            self.wait_for_registrations("both paths are registered again", &taken)?;
        }

        // Without any path, with queue_if_no_path: the kernel would keep the command.
        let not_ready = Completion::check(SenseCode::NOT_READY);
        self.report.differs("multipath-no-path");
        a.set_alive(false)?;
        b.set_alive(false)?;
        self.expect(&read_keys(), &not_ready);
        self.expect_and_log(&clear(OURS), &not_ready, &["none of its paths works", &self.map.name()]);
        self.map.wait_for_paths(0)?;
        self.expect(&read_full_status(), &not_ready);
        self.expect_and_log(&register_ignoring(OURS), &not_ready, &["none of its paths works"]);
        a.set_alive(true)?;
        b.set_alive(true)?;
        self.map.wait_for_paths(2)?;

        // While the table is swapped.
        let name = self.map.name();
        run("dmsetup", &["suspend", "--noflush", &name])?;
        self.expect(&read_keys(), &Completion::Status(Status::BUSY));
        let resume = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            run("dmsetup", &["resume", &name])
        });
        self.expect_same(&read_keys())?;
        resume.join().expect("it does not panic")?;
        self.wait_for_registrations("everything is as it was", &taken)?;

        // The whole of it without a path: nothing is left of this host once it is forgotten.
        self.expect(&release(OURS, RO), &GOOD);
        self.theirs(&register(THEIRS, Key::ZERO))?;
        self.cleanup()?;
        a.set_alive(false)?;
        a.set_alive(true)?;
        self.map.wait_for_paths(2)?;
        self.expect_registered("what was cleaned up is not registered again by a path that comes back", &[])
    }

    fn ports(mut self) -> Result<()> {
        let [a, b] = self.map.pair();
        let other_host = &self.map.other_host;
        // As the unit has it, which goes by sessions.
        self.theirs(&register(Key::ZERO, THEIRS))?;
        let Completion::Good(status) = self.theirs(&read_full_status())? else { bail!("the status cannot be read") };
        let port = FullStatus::parse(&status)?.value.descriptors.first().context("no registration")?.transport_id()?;
        self.theirs(&clear(THEIRS))?;
        let request = register_spec_i_pt(OURS, &[port]);
        let refused = Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
        self.report.differs("multipath-initiator-ports");
        self.expect_and_log(&request, &refused, &["SPEC_I_PT", &self.map.name()]);
        self.expect_registered("nothing is registered then", &[])?;

        self.map.remove_path(b)?;
        self.map.wait_for_paths(1)?;
        wait_for("map of one path", || match std::fs::read_dir(self.map.slaves()?)?.count() {
            1 => Ok(()),
            count => bail!("{count} paths"),
        })?;
        self.expect(&request, &GOOD);
        self.expect_registered("both ports are registered", &[(a, OURS, false), (other_host, OURS, false)])?;
        self.expect(&clear(OURS), &GOOD);
        let sas = TransportId::new(InitiatorPort::Sas { address: 1 })?;
        self.expect(&register_spec_i_pt(OURS, &[sas]), &refused);
        self.expect_registered("nothing is registered of what the library would send cut", &[])?;

        self.report.differs("multipath-list");
        let whole = request.command().parameter_list().to_vec();
        let register = |text: &str, list: Vec<u8>| {
            let length = u16::try_from(list.len()).expect("a short list");
            Request::raw(text, Opcode::ReserveOut, 0x00, 0x00, length, list)
        };
        let surplus = [&whole[..], &[0; 4]].concat();
        self.expect(&register("REGISTER with bytes after its TransportIDs", surplus), &refused);
        let mut wrapping = whole.clone();
        wrapping[24..28].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
        self.expect(&register("REGISTER with TransportIDs of 4 GiB", wrapping), &refused);
        let many = [&whole[..24], &(33 * 24_u32).to_be_bytes(), &[0; 33 * 24]].concat();
        self.expect(&register("REGISTER with 33 TransportIDs", many), &refused);
        let mut without_flag = whole;
        without_flag[20] = 0;
        let wrong_length = Completion::check(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
        self.expect(&register("REGISTER with TransportIDs, and no SPEC_I_PT", without_flag), &wrong_length);
        self.expect_registered("nothing is registered by a list that is not whole", &[])
    }

    fn diagnosis(mut self) -> Result<()> {
        let name = self.map.name();
        let refused = Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
        let failed = Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE);

        self.report.differs("multipath-causes");
        self.map.configure("")?;
        let missing = ["multipath.conf has no reservation_key", "`reservation_key file`", &name];
        self.expect_and_log(&register(Key::ZERO, OURS), &refused, &missing);
        self.expect_and_log(&register_ignoring(OURS), &refused, &missing);
        self.expect_registered("nothing was registered", &[])?;

        self.report.differs("multipath-configuration");
        self.map.configure("reservation_key 0xbbb")?;
        let another = ["allows it the reservation_key 0x0000000000000bbb alone", &name];
        self.expect_and_log(&register(Key::ZERO, OURS), &refused, &another);
        self.expect_registered("nothing was registered", &[])?;
        self.expect(&register(Key::ZERO, OTHER), &GOOD);
        self.expect_and_log(&register(OTHER, OURS), &refused, &another);
        self.expect_and_log(&reserve(OURS, RO), &CONFLICT, &another);
        self.expect(&reserve(OTHER, RO), &GOOD);
        self.expect(&clear(OTHER), &GOOD);

        self.map.configure("reservation_key file")?;
        let process = multipathd()?;
        let signal = |signal| -> Result<()> {
            let process = Pid::from_raw(process.parse()?).context("multipathd has no number")?;
            Ok(kill_process(process, signal)?)
        };
        signal(Signal::STOP)?;
        self.expect_and_log(&register(Key::ZERO, OURS), &failed, &["multipathd did not answer within", &name]);
        signal(Signal::CONT)?;
        self.expect(&register(Key::ZERO, OURS), &GOOD);
        self.expect(&register(OURS, Key::ZERO), &GOOD);

        // It may end before it has answered.
        let _ = run("multipathd", &["shutdown"]);
        wait_for("end of multipathd", || match Path::new("/proc").join(&process).exists() {
            false => Ok(()),
            true => bail!("it runs"),
        })?;
        let down = ["multipathd does not listen", "systemctl start multipathd", &name];
        self.expect_and_log(&register(Key::ZERO, OURS), &failed, &down);
        let cleanup = self.send_cleanup()?;
        let logged = self.logged().iter().any(|line| line.contains("CLEANUP") && line.contains(down[0]));
        let outcome = if cleanup == failed && logged { Ok(()) } else { Err(cleanup.to_string()) };
        self.report.check("CLEANUP without multipathd fails, and the log says why", outcome);
        start_multipathd()?;
        self.map.wait_for_paths(2)?;
        self.expect(&register(Key::ZERO, OURS), &GOOD);
        self.expect(&clear(OURS), &GOOD);

        let held = self.theirs(&read_reservation())?;
        let Completion::Good(data) = held else { bail!("{held}") };
        Reservation::parse(&data)?
            .value
            .held
            .map_or(Ok(()), |held| bail!("left behind: {}", short(held.key)))
            .context("at the end")
    }

    /// Which of two paths holds the reservation, and which does not.
    fn holder_and_other(&self) -> Result<(&'a Disk, &'a Disk)> {
        match self.holder_and_rest()? {
            (holder, rest) if rest.len() == 1 => Ok((holder, rest[0])),
            (_, rest) => bail!("{} paths do not hold the reservation", rest.len()),
        }
    }
}

/// The same registrations with another key, but for the other host's.
trait MapKeys {
    fn map_keys(self, key: Key) -> Self;
}

impl MapKeys for Vec<(&Disk, Key, bool)> {
    fn map_keys(mut self, key: Key) -> Self {
        self.iter_mut().filter(|(_, old, _)| *old == OURS).for_each(|(_, old, _)| *old = key);
        self
    }
}
