//! The requests of the helper to SG_IO, and the answer for each result.

use conformance::sg_io::{Call, Done, FROM_DEVICE, Reply, TO_DEVICE};
use conformance::{Answer, Helper, Subject, against_each_helper, in_cdb, null, out_cdb, sense};
use rustix::io::Errno;

against_each_helper!(
    in_asks_for_8192_bytes,
    out_sends_the_list,
    every_errno_has_its_answer,
    every_host_status_has_its_answer,
    host_status_outweighs_driver_status_and_status,
    host_status_does_not_hide_the_refusal_of_the_unit,
    driver_status_is_busy_or_nothing,
    driver_status_does_not_turn_into_good,
    failure_sense_does_not_turn_into_good,
    check_condition_always_has_sense,
    ioctl_that_writes_nothing_is_not_good,
    status_is_passed_on,
    sense_is_passed_on_byte_for_byte,
    data_are_the_transferred_bytes,
    answer_of_one_connection_does_not_wait_for_another,
);

fn supervised(subject: &Subject) -> Helper {
    subject.command().supervised().serve()
}

const LIST: [u8; 24] = *b"a parameter list, really";

/// The answers to IN and to OUT when SG_IO replies like this.
fn answers(helper: &Helper, reply: Reply) -> [Answer; 2] {
    helper.supervisor().reply(reply);
    let client = helper.connect();
    [client.run(&in_cdb(1, 24), &[], null()), client.run(&out_cdb(0, 24), &LIST, null())]
}

fn in_asks_for_8192_bytes(subject: &Subject) {
    let helper = supervised(subject);
    helper.connect().run(&in_cdb(1, 24), &[], null());
    let calls = helper.supervisor().calls();
    let [call] = &calls[..] else { panic!("{calls:?}") };
    let expected = Call {
        interface_id: i32::from(b'S'),
        direction: FROM_DEVICE,
        command: in_cdb(1, 24).to_vec(),
        sense_room: 96,
        iovec_count: 0,
        transfer_length: 8192,
        timeout: subject.differs("timeout", 1, 30_000),
        flags: 0,
        ..call.clone()
    };
    assert_eq!(call, &expected);
}

fn out_sends_the_list(subject: &Subject) {
    let helper = supervised(subject);
    helper.connect().run(&out_cdb(1, 24), &LIST, null());
    let calls = helper.supervisor().calls();
    let [call] = &calls[..] else { panic!("{calls:?}") };
    let expected = Call {
        interface_id: i32::from(b'S'),
        direction: TO_DEVICE,
        command: out_cdb(1, 24).to_vec(),
        sense_room: 96,
        iovec_count: 0,
        transfer_length: 24,
        buffer: LIST.to_vec(),
        timeout: subject.differs("timeout", 1, 30_000),
        flags: 0,
        ..call.clone()
    };
    assert_eq!(call, &expected);
}

fn every_errno_has_its_answer(subject: &Subject) {
    let helper = supervised(subject);
    let target_failure = Answer::check(0x04, 0x44, 0x00);
    let enodev = subject.differs("enodev", Answer::io_process_terminated(), target_failure.clone());
    let named = [
        (Errno::DOM, Answer::status(0x28)),
        (Errno::BADE, Answer::status(0x18)),
        (Errno::NODATA, Answer::check(0x03, 0x11, 0x00)),
        (Errno::REMOTEIO, target_failure.clone()),
        (Errno::NOMEM, target_failure),
        (Errno::NOMEDIUM, Answer::check(0x02, 0x3a, 0x00)),
        (Errno::INVAL, Answer::check(0x05, 0x24, 0x00)),
        (Errno::NOSPC, Answer::check(0x07, 0x27, 0x07)),
        (Errno::NODEV, enodev),
    ];
    for errno in 1..=133 {
        let expected = named
            .iter()
            .find(|(name, _)| name.raw_os_error() == errno)
            .map_or_else(Answer::io_process_terminated, |(_, answer)| answer.clone());
        for answer in answers(&helper, Reply::Errno(errno)) {
            assert_eq!(answer, expected, "errno {errno}, {}", Errno::from_raw_os_error(errno));
        }
    }
    // Nothing is tried again, EINTR and EAGAIN neither: an OUT may have been done.
    assert_eq!(helper.supervisor().calls().len(), 2 * 133);
}

/// The answer for a host status; `None` for a status without one.
fn host_status_answer(host_status: u16) -> Option<Answer> {
    Some(match host_status {
        0x01 => Answer::check(0x0b, 0x05, 0x00),
        0x02 => Answer::status(0x08),
        0x03 => Answer::check(0x0b, 0x2e, 0x02),
        0x04 => Answer::check(0x0b, 0x08, 0x00),
        0x05 => Answer::check(0x0b, 0x2f, 0x02),
        0x08 => Answer::check(0x06, 0x29, 0x00),
        0x0e => Answer::check(0x0b, 0x29, 0x07),
        0x10 => Answer::check(0x04, 0x44, 0x00),
        0x11 => Answer::status(0x18),
        0x12 => Answer::check(0x07, 0x27, 0x07),
        0x13 => Answer::check(0x03, 0x11, 0x00),
        _ => return None,
    })
}

fn every_host_status_has_its_answer(subject: &Subject) {
    let helper = supervised(subject);
    for host_status in (0x01..=0x20).chain([0x7f, 0x80, 0xff, 0x100, 0xffff]) {
        let reply = Reply::Done(Done { host_status, residual: 8192, ..Done::default() });
        let expected = host_status_answer(host_status).unwrap_or_else(|| {
            subject.differs("unknown-host-status", Answer::good(&[]), Answer::check(0x0b, 0x08, 0x00))
        });
        for answer in answers(&helper, reply) {
            assert_eq!(answer, expected, "host_status {host_status:#04x}");
        }
    }
}

fn host_status_outweighs_driver_status_and_status(subject: &Subject) {
    let helper = supervised(subject);
    for host_status in (0x01..=0x14).filter(|host_status| host_status_answer(*host_status).is_some()) {
        let reply = Done { host_status, status: 0x18, driver_status: 0x06, ..Done::default() };
        for answer in answers(&helper, Reply::Done(reply)) {
            assert_eq!(Some(answer), host_status_answer(host_status), "host_status {host_status:#04x}");
        }
    }
}

fn driver_status_is_busy_or_nothing(subject: &Subject) {
    let helper = supervised(subject);
    for driver_status in (0..=0x1f).chain([0x80, 0xff]) {
        let reply = Done { driver_status, status: 0x18, ..Done::default() };
        let expected = Answer::status(if driver_status & 0x06 == 0 { 0x18 } else { 0x08 });
        for answer in answers(&helper, Reply::Done(reply)) {
            assert_eq!(answer, expected, "driver_status {driver_status:#04x}");
        }
    }
    // DRIVER_SENSE with status GOOD, as some kernels have said it.
    let reply = Done { driver_status: 0x08, residual: 8192, ..Done::default() };
    assert_eq!(answers(&helper, Reply::Done(reply)), [Answer::good(&[]), Answer::good(&[])]);
}

fn host_status_does_not_hide_the_refusal_of_the_unit(subject: &Subject) {
    let helper = supervised(subject);
    let refusal = sense(0x05, 0x26, 0x00)[..18].to_vec();
    for host_status in (0x01..=0x20).filter(|host_status| host_status_answer(*host_status).is_none()) {
        let reply = Done { host_status, status: 0x02, driver_status: 0x08, sense: refusal.clone(), ..Done::default() };
        let [_, out] = answers(&helper, Reply::Done(reply));
        // QEMU's helper even sends the sense data along, with status GOOD.
        let refused = Answer::check(0x05, 0x26, 0x00);
        let good = Answer { status: 0, ..refused.clone() };
        let expected = subject.differs("unknown-host-status", good, refused);
        assert_eq!(out, expected, "host_status {host_status:#04x}");
    }
}

fn driver_status_does_not_turn_into_good(subject: &Subject) {
    let helper = supervised(subject);
    let failed = Answer::check(0x0b, 0x08, 0x00);
    for (driver_status, expected) in [(0x01, Answer::status(0x08)), (0x09, failed.clone()), (0x10, failed)] {
        let reply = Done { driver_status, residual: 8192, ..Done::default() };
        for answer in answers(&helper, Reply::Done(reply)) {
            let expected = subject.differs("unknown-driver-status", Answer::good(&[]), expected.clone());
            assert_eq!(answer, expected, "driver_status {driver_status:#04x}");
        }
    }
}

fn failure_sense_does_not_turn_into_good(subject: &Subject) {
    let helper = supervised(subject);
    // RECOVERED ERROR may come with GOOD, ABORTED COMMAND may not.
    for key in [0x01, 0x0b] {
        let said = Answer::check(key, 0x11, 0x01);
        let with_good = Answer { status: 0, ..said.clone() };
        let expected = match key {
            0x01 => subject.differs("sense-without-check-condition", with_good, Answer::good(&[])),
            _ => subject.differs("failure-with-good", with_good, said.clone()),
        };
        let sense = said.sense[..18].to_vec();
        let reply = Done { driver_status: 0x08, residual: 8192, sense, ..Done::default() };
        assert_eq!(answers(&helper, Reply::Done(reply)), [expected.clone(), expected], "sense key {key:#x}");
    }
}

fn check_condition_always_has_sense(subject: &Subject) {
    let helper = supervised(subject);
    for sense in [vec![], vec![0; 18]] {
        for answer in answers(&helper, Reply::sense(&sense)) {
            let (none, some) = (Answer::status(0x02), Answer::check(0x0b, 0x08, 0x00));
            assert_eq!(answer, subject.differs("check-condition-without-sense", none, some));
        }
    }
}

fn ioctl_that_writes_nothing_is_not_good(subject: &Subject) {
    let helper = supervised(subject);
    let failure = Answer::check(0x0b, 0x08, 0x00);
    let [read, reserved] = answers(&helper, Reply::Ignored);
    assert_eq!(reserved, subject.differs("ioctl-of-another", Answer::good(&[]), failure.clone()));
    assert_eq!((read.status, read.size), subject.differs("ioctl-of-another", (0x00, 24), (0x02, 0)));
}

fn status_is_passed_on(subject: &Subject) {
    let helper = supervised(subject);
    for status in (0..=0xff).filter(|status| *status != 0x02) {
        let reply = Done { status, residual: 8192, ..Done::default() };
        for answer in answers(&helper, Reply::Done(reply)) {
            assert_eq!(answer, Answer::status(status));
        }
    }
}

fn sense_is_passed_on_byte_for_byte(subject: &Subject) {
    let helper = supervised(subject);
    let fixed = [&[0xf0, 0x00, 0x06, 1, 2, 3, 4, 0x0a, 5, 6, 7, 8, 0x2a, 0x05, 9, 0xcf, 0xff, 1][..]].concat();
    let descriptor = [&[0x72, 0x05, 0x26, 0x02, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 0, 4, 0][..]].concat();
    let long: Vec<u8> = (0..96).map(|byte| if byte == 0 { 0x70 } else { byte | 0x80 }).collect();
    for sense in [fixed, descriptor, long] {
        let mut expected = Answer::status(0x02);
        expected.sense[..sense.len()].copy_from_slice(&sense);
        for answer in answers(&helper, Reply::sense(&sense)) {
            assert_eq!(answer, expected);
        }
    }
}

fn data_are_the_transferred_bytes(subject: &Subject) {
    let helper = supervised(subject);
    let written: Vec<u8> = (0..8192_u32).map(|byte| (byte % 251) as u8 + 1).collect();
    let client = helper.connect();
    for (residual, transferred) in [(0, 8192), (1, 8191), (4096, 4096), (8168, 24), (8184, 8), (8192, 0)] {
        let reply = Done { residual, data: written[..transferred].to_vec(), ..Done::default() };
        helper.supervisor().reply(Reply::Done(reply));
        for allocation_length in [0, 1, 8, 24, 4096, 8191, 8192] {
            let answer = client.run(&in_cdb(0, allocation_length), &[], null());
            let expected = &written[..transferred.min(allocation_length.into())];
            assert_eq!(answer, Answer::good(expected), "residual {residual}, room for {allocation_length}");
        }
    }
    // More than was asked for cannot have come.
    helper.supervisor().reply(Reply::Done(Done { residual: -1, data: written.clone(), ..Done::default() }));
    assert_eq!(client.run(&in_cdb(0, 8192), &[], null()), Answer::good(&written));
}

fn answer_of_one_connection_does_not_wait_for_another(subject: &Subject) {
    let helper = supervised(subject);
    helper.supervisor().hold();
    let (slow, quick) = (helper.connect(), helper.connect());
    slow.request(&out_cdb(1, 24), &LIST, null());
    helper.supervisor().wait_for_held(1);
    helper.supervisor().reply(Reply::Done(Done { status: 0x18, ..Done::default() }));
    assert_eq!(quick.run(&out_cdb(0, 24), &LIST, null()), Answer::status(0x18));
    assert!(slow.is_silent());
    helper.supervisor().release(Reply::data(&[]));
    assert_eq!(slow.answer(), Answer::good(&[]));
}
