//! Devices that are a part of a unit, or one of several ways to it: what our helper refuses there, and what it lets
//! through.

use anyhow::Result;
use scsi_pr::{Key, SenseCode, Type};
use scsi_pr_helper::HelperClient;

use super::{Lab, Scenario};
use crate::commands::*;
use crate::helper::{Helper, log_of};
use crate::over::Over;
use crate::report::Report;
use crate::script::Expect::{Good, Keys, Reservation, Sense};
use crate::script::Node::{A, B};
use crate::script::Run;
use crate::target::Unit;

const KEY_A: Key = Key(0xa1);
const KEY_B: Key = Key(0xb2);
const NONE: Key = Key(0);
const KIND: Type = Type::WriteExclusive;

/// What the device does not do.
const REFUSED: SenseCode = SenseCode::INVALID_OPCODE;

/// A partition and a linear map: OUT would reserve the whole disk.
pub(super) const PARTS: Scenario = Scenario {
    name: "parts",
    boot: "target",
    purpose: "on a partition or a linear map our helper reads, and changes nothing on the disk beneath",
    run: |lab, report| {
        let helpers = Helpers::start(lab, "parts")?;
        for over in [Over::partition, Over::linear] {
            let unit = lab.target()?.unit()?;
            let over = over(&unit.disks[0])?;
            let unit = beside(&over, unit);
            helpers.run(report, &unit, part)?;
            helpers.run_overridden(report, &unit, |run| {
                run.send(A, &register(NONE, KEY_A), Good);
                run.send(B, &read_keys(), Keys(vec![KEY_A]));
                run.send(A, &register(KEY_A, NONE), Good);
            })?;
        }
        logged(report, "parts", "--manager=sg-io");
        Ok(())
    },
};

/// A multipath map, and no multipathd that would register paths which come later.
pub(super) const MULTIPATH: Scenario = Scenario {
    name: "one-path",
    boot: "target",
    purpose: "on a multipath map without multipathd our helper reads and gives up, and registers nothing",
    run: |lab, report| {
        let helpers = Helpers::start(lab, "one-path")?;
        let unit = lab.target()?.unit()?;
        let over = Over::multipath(&unit.disks)?;
        let unit = beside(&over, unit);
        helpers.run(report, &unit, |run| {
            run.send(A, &read_keys(), Keys(vec![]));
            for request in [register(NONE, KEY_A), register_ignoring(KEY_A)] {
                run.send(A, &request, Sense(SenseCode::LUN_COMMUNICATION_FAILURE));
            }
            run.send(B, &read_keys(), Keys(vec![]));
        })?;
        // As it was done before there was a helper that knows better.
        helpers.run_overridden(report, &unit, |run| {
            run.send(A, &register(NONE, KEY_A), Good);
            run.send(A, &reserve(KEY_A, KIND), Good);
        })?;
        helpers.run(report, &unit, |run| {
            run.send(A, &read_reservation(), Reservation(Some((KEY_A, KIND))));
            run.send(A, &register(KEY_A, KEY_B), Sense(SenseCode::LUN_COMMUNICATION_FAILURE));
            run.send(B, &read_keys(), Keys(vec![KEY_A]));
            run.send(A, &release(KEY_A, KIND), Good);
            run.send(B, &read_reservation(), Reservation(None));
            run.send(A, &register(KEY_A, NONE), Good);
            run.send(B, &read_keys(), Keys(vec![]));
        })?;
        logged(report, "one-path", "multipathd does not listen");
        Ok(())
    },
};

/// A has a part of the disk, B the disk itself.
fn part(run: &mut Run<'_>) {
    run.send(A, &report_capabilities(), Good);
    run.send(A, &read_keys(), Keys(vec![]));
    for request in [register(NONE, KEY_A), register_ignoring(KEY_A)] {
        run.send(A, &request, Sense(REFUSED));
    }
    run.send(B, &read_keys(), Keys(vec![]));
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(B, &reserve(KEY_B, KIND), Good);
    run.send(A, &read_reservation(), Reservation(Some((KEY_B, KIND))));
    for request in [preempt(KEY_A, KEY_B, KIND), release(KEY_B, KIND), register(KEY_B, NONE), clear(KEY_B)] {
        run.send(A, &request, Sense(REFUSED));
    }
    run.send(B, &read_reservation(), Reservation(Some((KEY_B, KIND))));
    run.send(B, &clear(KEY_B), Good);
}

/// Our helper as it comes, and the same with `--manager=sg-io`.
struct Helpers {
    _processes: [Helper; 2],
    careful: HelperClient,
    overridden: HelperClient,
}

impl Helpers {
    fn start(lab: &Lab, name: &str) -> Result<Self> {
        let program = lab.programs.join("qemu-pr-helper");
        let careful = Helper::start(&program, name, &[])?;
        let overridden = Helper::start(&program, &format!("{name}-overridden"), &["--manager=sg-io"])?;
        Ok(Self { careful: careful.client(), overridden: overridden.client(), _processes: [careful, overridden] })
    }

    fn run(&self, report: &mut Report, unit: &Unit, script: impl FnOnce(&mut Run<'_>)) -> Result<()> {
        steps(&self.careful, report, unit, script)
    }

    fn run_overridden(&self, report: &mut Report, unit: &Unit, script: impl FnOnce(&mut Run<'_>)) -> Result<()> {
        steps(&self.overridden, report, unit, script)
    }
}

fn steps(client: &HelperClient, report: &mut Report, unit: &Unit, script: impl FnOnce(&mut Run<'_>)) -> Result<()> {
    let mut run = Run::new(client, unit)?;
    script(&mut run);
    run.report(report)
}

/// `unit`, which its first initiator sees as the device `over` it.
fn beside(over: &Over, unit: Unit) -> Unit {
    let Unit { serial, disks: [_, other] } = unit;
    Unit { serial, disks: [over.path.clone(), other] }
}

/// Whether the helper's log says why.
fn logged(report: &mut Report, name: &str, why: &str) {
    let log = log_of(name);
    let said = log.contains(why);
    report.check(format!("the helper's log says why: {why}"), if said { Ok(()) } else { Err(log) });
}
