//! Devices that are a part of a unit, or one of several paths to it: commands that this project's helper refuses there, and
//! commands that it sends.

use anyhow::Result;
use scsi_pr::{Key, SenseCode, Type};
use scsi_pr_helper::HelperClient;

use crate::commands::*;
use crate::helper::{Helper, log_of};
use crate::lab::Lab;
use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::script::Expect::{Good, Keys, Reservation, Sense};
use crate::script::Node::{A, B};
use crate::script::Run;
use crate::target::Unit;

const KEY_A: Key = Key(0xa1);
const KEY_B: Key = Key(0xb2);
const NONE: Key = Key(0);
const KIND: Type = Type::WriteExclusive;

/// The sense code of a refused PERSISTENT RESERVE OUT.
const REFUSED: SenseCode = SenseCode::INVALID_OPCODE;

/// A partition and a linear map. PERSISTENT RESERVE OUT would reserve the whole disk.
pub(super) const PARTS: Scenario = Scenario {
    name: "parts",
    boot: "target",
    purpose: "on a partition or a linear map the helper reads, and changes nothing on the disk beneath",
    run: |lab, report| {
        let helpers = Helpers::start(lab, "parts")?;
        for layer in [Layer::partition, Layer::linear] {
            let unit = lab.target()?.unit()?;
            let layer = layer(&unit.disks[0])?;
            let unit = with_layer(&layer, unit);
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

/// A multipath map without multipathd, which would register paths that come later.
pub(super) const MULTIPATH: Scenario = Scenario {
    name: "one-path",
    boot: "target",
    purpose: "on a multipath map without multipathd the helper reads and releases, and registers nothing",
    run: |lab, report| {
        let helpers = Helpers::start(lab, "one-path")?;
        let unit = lab.target()?.unit()?;
        let map = Layer::multipath(&unit.disks)?;
        let unit = with_layer(&map, unit);
        helpers.run(report, &unit, |run| {
            run.send(A, &read_keys(), Keys(vec![]));
            for request in [register(NONE, KEY_A), register_ignoring(KEY_A)] {
                run.send(A, &request, Sense(SenseCode::LUN_COMMUNICATION_FAILURE));
            }
            run.send(B, &read_keys(), Keys(vec![]));
        })?;
        // The registration of a helper without multipath support.
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
        logged(report, "one-path", "multipathd");
        Ok(())
    },
};

/// Initiator A has a part of the disk, B the disk itself.
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

/// This project's helper with its default options, and with `--manager=sg-io`.
struct Helpers {
    _processes: [Helper; 2],
    default: HelperClient,
    overridden: HelperClient,
}

impl Helpers {
    fn start(lab: &Lab, name: &str) -> Result<Self> {
        let program = lab.helper();
        let default = Helper::start(&program, name, &[])?;
        let overridden = Helper::start(&program, &format!("{name}-overridden"), &["--manager=sg-io"])?;
        Ok(Self { default: default.client(), overridden: overridden.client(), _processes: [default, overridden] })
    }

    fn run(&self, report: &mut Report, unit: &Unit, script: impl FnOnce(&mut Run<'_>)) -> Result<()> {
        steps(&self.default, report, unit, script)
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

/// `unit`, with `layer` in place of the first initiator's disk.
fn with_layer(layer: &Layer, unit: Unit) -> Unit {
    let Unit { serial, disks: [_, other] } = unit;
    Unit { serial, disks: [layer.path.clone(), other] }
}

/// Checks that the log of the helper `name` contains `text`.
fn logged(report: &mut Report, name: &str, text: &str) {
    let log = log_of(name);
    let found = log.contains(text);
    report.check(format!("the helper's log contains {text:?}"), if found { Ok(()) } else { Err(log) });
}
