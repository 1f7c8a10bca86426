//! The scripts that run through every helper, and without a helper: the commands of clusters, LVM and Windows.
//!
//! The expected answers are LIO's, which deviates from the standard in places. Each such place has a comment.

use anyhow::{Context, Result, bail};
use scsi_pr::{FullStatus, InitiatorPort, Key, Opcode, SenseCode, SenseKey, TransportId, Type};

use crate::commands::*;
use crate::script::Access::{Permitted, Refused};
use crate::script::Expect::{Conflict, Good, Keys, Reservation, Sense};
use crate::script::Node::{A, B};
use crate::script::{Entry, Run};
use crate::target::{Target, Unit};

const KEY_A: Key = Key(0xa1);
const KEY_B: Key = Key(0xb2);
const NONE: Key = Key(0);

/// LIO's answer to an unregistered initiator, 02/08/00. The standard has RESERVATION CONFLICT.
const NOT_REGISTERED: SenseCode = SenseCode { key: SenseKey::NOT_READY, asc: 0x08, ascq: 0x00 };

/// A script and its name. It starts and ends with a unit without registrations.
type Part = (&'static str, fn(&mut Run<'_>, &Unit) -> Result<()>);

const PARTS: &[Part] = &[
    ("registrations", registrations),
    ("exclusive", exclusive),
    ("registrants only", registrants_only),
    ("all registrants", all_registrants),
    ("preempt", preempting),
    ("preempt and abort", aborting),
    ("move", moving),
    ("other ports", other_ports),
    ("power loss", power_loss),
    ("mistakes", mistakes),
    ("fence_scsi", fence_scsi),
    ("LVM", lvm),
    ("Windows", windows),
];

/// Runs every script on a new unit through `manager`.
pub(crate) fn run(manager: &dyn scsi_pr::PrManager, target: &Target) -> Result<Vec<Entry>> {
    let unit = target.unit()?;
    let mut run = Run::new(manager, &unit)?;
    for (name, part) in PARTS {
        part(&mut run, &unit).with_context(|| format!("part {name} of the script"))?;
        run.send(A, &read_keys(), Keys(vec![]));
    }
    Ok(run.transcript())
}

fn registrations(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    run.send(A, &report_capabilities(), Good);
    run.send(A, &read_keys(), Keys(vec![]));
    run.send(A, &read_reservation(), Reservation(None));
    run.send(B, &reserve(KEY_B, Type::WriteExclusive), Sense(NOT_REGISTERED));
    run.send(A, &register(KEY_A, KEY_B), Conflict);
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(B, &read_keys(), Keys(vec![KEY_A, KEY_B]));
    run.send(A, &register(KEY_B, KEY_A), Conflict);
    run.send(A, &register(KEY_A, Key(0xa3)), Good);
    run.send(B, &read_keys(), Keys(vec![Key(0xa3), KEY_B]));
    run.send(B, &register_ignoring(Key(0xb4)), Good);
    run.send(A, &read_full_status(), Good);
    run.send(A, &register(Key(0xa3), NONE), Good);
    run.send(A, &read_keys(), Keys(vec![Key(0xb4)]));
    run.send(B, &register_ignoring(NONE), Good);
    Ok(())
}

fn exclusive(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &reserve(KEY_B, Type::WriteExclusive), Conflict);
    run.send(A, &reserve(KEY_A, Type::WriteExclusive), Good);
    run.send(B, &read_reservation(), Reservation(Some((KEY_A, Type::WriteExclusive))));
    run.send(B, &reserve(KEY_B, Type::WriteExclusive), Conflict);
    run.send(A, &reserve(KEY_A, Type::WriteExclusive), Good);
    run.send(A, &reserve(KEY_A, Type::ExclusiveAccess), Conflict);
    run.write(A, Permitted);
    run.write(B, Refused);
    run.read(B, Permitted);
    // LIO: the standard has INVALID RELEASE OF PERSISTENT RESERVATION.
    run.send(A, &release(KEY_A, Type::ExclusiveAccess), Conflict);
    run.send(B, &release(KEY_B, Type::WriteExclusive), Good);
    run.send(B, &read_reservation(), Reservation(Some((KEY_A, Type::WriteExclusive))));
    run.send(A, &release(KEY_A, Type::WriteExclusive), Good);
    run.send(B, &read_reservation(), Reservation(None));
    run.write(B, Permitted);
    run.send(A, &reserve(KEY_A, Type::ExclusiveAccess), Good);
    run.read(A, Permitted);
    run.read(B, Refused);
    run.write(B, Refused);
    run.send(B, &clear(KEY_A), Conflict);
    run.send(B, &clear(KEY_B), Good);
    run.send(A, &read_keys(), Sense(SenseCode::RESERVATIONS_PREEMPTED));
    run.write(B, Permitted);
    Ok(())
}

fn registrants_only(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let kind = Type::WriteExclusiveRegistrantsOnly;
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(A, &reserve(KEY_A, kind), Good);
    run.write(B, Refused);
    run.read(B, Permitted);
    run.send(B, &register(NONE, KEY_B), Good);
    run.write(B, Permitted);
    run.send(B, &read_full_status(), Good);
    run.send(A, &release(KEY_A, kind), Good);
    run.send(B, &read_reservation(), Sense(SenseCode::RESERVATIONS_RELEASED));
    run.send(B, &read_reservation(), Reservation(None));
    run.send(B, &reserve(KEY_B, Type::ExclusiveAccessRegistrantsOnly), Good);
    run.read(A, Permitted);
    run.send(A, &register(KEY_A, NONE), Good);
    run.read(A, Refused);
    run.write(A, Refused);
    run.send(B, &register(KEY_B, NONE), Good);
    run.read(A, Permitted);
    Ok(())
}

fn all_registrants(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    for kind in [Type::WriteExclusiveAllRegistrants, Type::ExclusiveAccessAllRegistrants] {
        run.send(A, &register(NONE, KEY_A), Good);
        run.send(A, &reserve(KEY_A, kind), Good);
        run.write(B, Refused);
        run.send(B, &register(NONE, KEY_B), Good);
        run.write(B, Permitted);
        run.send(B, &reserve(KEY_B, kind), Good);
        // Every registrant holds it, so READ RESERVATION has no key.
        run.send(B, &read_reservation(), Reservation(Some((NONE, kind))));
        run.send(B, &read_full_status(), Good);
        run.send(A, &register(KEY_A, NONE), Good);
        run.send(B, &read_reservation(), Reservation(Some((NONE, kind))));
        run.write(A, Refused);
        run.send(B, &register(KEY_B, NONE), Good);
        run.write(A, Permitted);
    }
    Ok(())
}

fn preempting(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &reserve(KEY_A, Type::WriteExclusive), Good);
    run.send(B, &preempt(KEY_B, Key(0xdead), Type::WriteExclusive), Conflict);
    run.send(B, &preempt(KEY_B, NONE, Type::WriteExclusive), Sense(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
    run.send(B, &preempt(KEY_B, KEY_A, Type::ExclusiveAccess), Good);
    run.send(A, &read_keys(), Sense(SenseCode::REGISTRATIONS_PREEMPTED));
    run.send(A, &read_keys(), Keys(vec![KEY_B]));
    run.send(A, &read_reservation(), Reservation(Some((KEY_B, Type::ExclusiveAccess))));
    run.write(A, Refused);
    run.write(B, Permitted);
    run.send(A, &release(KEY_A, Type::ExclusiveAccess), Conflict);
    run.send(B, &clear(KEY_B), Good);
    run.write(A, Permitted);
    Ok(())
}

fn aborting(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let kind = Type::WriteExclusiveRegistrantsOnly;
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &reserve(KEY_A, kind), Good);
    run.send(B, &preempt_and_abort(KEY_B, KEY_A, kind), Good);
    run.send(A, &read_reservation(), Sense(SenseCode::REGISTRATIONS_PREEMPTED));
    run.send(A, &read_reservation(), Reservation(Some((KEY_B, kind))));
    run.write(A, Refused);
    run.write(B, Permitted);
    // PREEMPT removes a registrant that is not the holder, and the reservation stays.
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &preempt_and_abort(KEY_B, KEY_A, kind), Good);
    run.send(A, &read_keys(), Sense(SenseCode::REGISTRATIONS_PREEMPTED));
    run.send(A, &read_keys(), Keys(vec![KEY_B]));
    run.send(B, &register(KEY_B, NONE), Good);
    Ok(())
}

fn moving(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let (port_b, target_port) = port_of(run, B)?;
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(A, &register_and_move(KEY_A, KEY_B, target_port, &port_b), Sense(SenseCode::INVALID_FIELD_IN_CDB));
    run.send(A, &reserve(KEY_A, Type::WriteExclusive), Good);
    run.write(B, Refused);
    run.send(
        A,
        &register_and_move(KEY_A, NONE, target_port, &port_b),
        Sense(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST),
    );
    run.send(A, &register_and_move(KEY_A, KEY_B, target_port, &port_b), Good);
    run.send(B, &read_reservation(), Reservation(Some((KEY_B, Type::WriteExclusive))));
    run.send(B, &read_keys(), Keys(vec![KEY_B]));
    run.write(A, Refused);
    run.write(B, Permitted);
    run.send(B, &register(KEY_B, NONE), Good);
    Ok(())
}

fn other_ports(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let (port_b, _) = port_of(run, B)?;
    run.send(A, &register_spec_i_pt(KEY_A, std::slice::from_ref(&port_b)), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_A, KEY_A]));
    run.send(A, &read_full_status(), Good);
    run.send(B, &register(KEY_A, NONE), Good);
    run.send(A, &register(KEY_A, NONE), Good);
    run.send(A, &register_all_tg_pt(KEY_A), Good);
    run.send(A, &read_full_status(), Good);
    run.send(A, &clear(KEY_A), Good);
    Ok(())
}

fn power_loss(run: &mut Run<'_>, unit: &Unit) -> Result<()> {
    run.send(A, &register_aptpl(KEY_A), Good);
    run.send(A, &reserve(KEY_A, Type::WriteExclusive), Good);
    run.send(A, &report_capabilities(), Good);
    let file = unit.aptpl_file();
    run.observe(
        "the target has written the registration to its disk",
        file.contains("sa_res_key=161") && file.contains("res_holder=1"),
    );
    run.send(A, &register_ignoring(KEY_A), Good);
    run.send(A, &report_capabilities(), Good);
    run.send(A, &register(KEY_A, NONE), Good);
    Ok(())
}

fn mistakes(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let bare = |service_action, length: u16| {
        let text = format!("PERSISTENT RESERVE OUT, service action {service_action}, {length} bytes");
        Request::raw(&text, Opcode::ReserveOut, service_action, 0, length, vec![0; usize::from(length)])
    };
    let mut spec_i_pt = vec![0; 24];
    spec_i_pt[15] = 0xa1;
    spec_i_pt[20] = 8;
    let spec_i_pt = Request::raw("REGISTER with SPEC_I_PT and no list", Opcode::ReserveOut, 0, 0, 24, spec_i_pt);
    let mut reserve = vec![0; 24];
    reserve[7] = 0xa1;
    let reserve = Request::raw("RESERVE of an undefined type", Opcode::ReserveOut, 1, 2, 24, reserve);
    let unknown = Request::raw("PERSISTENT RESERVE IN, service action 31", Opcode::ReserveIn, 0x1f, 0, 24, Vec::new());
    run.send(A, &unknown, Sense(SenseCode::INVALID_FIELD_IN_CDB));
    run.send(A, &bare(9, 24), Sense(SenseCode::INVALID_FIELD_IN_CDB));
    run.send(A, &bare(0, 16), Sense(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    run.send(A, &spec_i_pt, Sense(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &reserve, Sense(SenseCode::INVALID_FIELD_IN_CDB));
    for length in [8, 12, 16, 24] {
        let text = format!("READ KEYS into {length} bytes");
        run.send(A, &Request::raw(&text, Opcode::ReserveIn, 0, 0, length, Vec::new()), Good);
    }
    run.send(A, &clear(KEY_A), Good);
    run.send(B, &read_keys(), Sense(SenseCode::RESERVATIONS_PREEMPTED));
    Ok(())
}

/// Pacemaker's fence_scsi: both nodes register, one reserves, fences the other, and that one comes back.
fn fence_scsi(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let kind = Type::WriteExclusiveRegistrantsOnly;
    for (node, key) in [(A, KEY_A), (B, KEY_B)] {
        run.send(node, &read_keys(), Good);
        run.send(node, &register_ignoring(key), Good);
        run.send(node, &read_reservation(), Good);
    }
    run.send(A, &reserve(KEY_A, kind), Good);
    run.write(B, Permitted);
    run.send(A, &register_ignoring(KEY_A), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_A, KEY_B]));
    run.send(A, &preempt_and_abort(KEY_A, KEY_B, kind), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_A]));
    run.write(B, Refused);
    // The write has taken the unit attention. The node unfences itself.
    run.send(B, &register_ignoring(KEY_B), Good);
    run.write(B, Permitted);
    run.send(A, &clear(KEY_A), Good);
    run.send(B, &read_keys(), Sense(SenseCode::RESERVATIONS_PREEMPTED));
    Ok(())
}

/// LVM's lvmpersist: start on both hosts, remove a host that failed, stop.
fn lvm(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let (host_1, host_2) = (Key(0x1000_0000_0000_0001), Key(0x1000_0000_0000_0002));
    let kind = Type::WriteExclusiveAllRegistrants;
    for (node, key) in [(A, host_1), (B, host_2)] {
        run.send(node, &report_capabilities(), Good);
        run.send(node, &register_ignoring(key), Good);
        run.send(node, &read_reservation(), Good);
        run.send(node, &reserve(key, kind), Good);
    }
    run.send(A, &read_keys(), Keys(vec![host_1, host_2]));
    run.send(B, &register_ignoring(host_2), Good);
    run.send(B, &preempt_and_abort(host_2, host_1, kind), Good);
    run.send(B, &read_keys(), Keys(vec![host_2]));
    run.write(A, Refused);
    run.send(B, &register(host_2, NONE), Good);
    Ok(())
}

/// Windows' cluster validation.
fn windows(run: &mut Run<'_>, _: &Unit) -> Result<()> {
    let kind = Type::WriteExclusiveRegistrantsOnly;
    let (key_a, key_b) = (Key(0x0102_0304_7466_734d), Key(0x0506_0708_7466_734d));
    run.send(A, &register_ignoring(key_a), Good);
    run.send(A, &reserve(key_a, kind), Good);
    for node in [A, B] {
        run.send(node, &read_reservation(), Reservation(Some((key_a, kind))));
        run.send(node, &read_keys(), Keys(vec![key_a]));
    }
    run.send(B, &register_ignoring(key_b), Good);
    run.send(B, &reserve(key_b, kind), Conflict);
    run.send(B, &preempt(key_b, key_a, kind), Good);
    run.send(A, &read_reservation(), Sense(SenseCode::REGISTRATIONS_PREEMPTED));
    run.send(A, &reserve(key_a, kind), Conflict);
    run.send(B, &release(key_b, kind), Good);
    run.send(B, &register_ignoring(NONE), Good);
    Ok(())
}

/// The TransportID of `node` and its relative target port, from READ FULL STATUS while it is registered.
fn port_of(run: &mut Run<'_>, node: crate::script::Node) -> Result<(TransportId, u16)> {
    run.send(node, &register(NONE, KEY_B), Good);
    let status = run.send(node, &read_full_status(), Good);
    run.send(node, &register(KEY_B, NONE), Good);
    let status = FullStatus::parse(&status)?.value;
    let [registration] = &status.descriptors[..] else { bail!("one registration was expected: {status:?}") };
    let port = registration.transport_id()?;
    let InitiatorPort::Iscsi { isid: Some(_), .. } = port.port() else {
        bail!("{port:?} is not an iSCSI initiator port")
    };
    Ok((port, registration.relative_target_port))
}
