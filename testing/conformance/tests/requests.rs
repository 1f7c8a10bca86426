//! Requests and answers, and the ends of connections.

use std::fs::File;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use conformance::{Answer, Client, Subject, against_each_helper, eventually, holds_for, in_cdb, null, out_cdb, sg_io};
use rustix::process::Signal;

against_each_helper!(
    other_opcode_closes,
    cleanup_without_multipath_is_good,
    more_than_8192_bytes_close,
    command_without_data_reaches_the_unit,
    length_is_in_bytes_7_and_8,
    commands_reach_the_unit_byte_for_byte,
    list_in_pieces_is_taken,
    end_at_any_byte_closes,
    client_that_ends_sending_gets_its_answer,
    client_that_leaves_does_not_stop_its_command,
    pipelined_requests_are_answered_in_order,
    client_that_never_reads_stalls_itself_alone,
    half_sent_request_stalls_itself_alone,
    client_that_leaves_between_requests_is_not_logged,
    protocol_violations_leave_nothing_behind,
    protocol_violations_do_not_flood_the_log,
);

fn other_opcode_closes(subject: &Subject) {
    let helper = subject.serve();
    for opcode in [0x00, 0x12, 0x5d, 0x60, 0xa0, 0xfe] {
        let client = helper.connect();
        let mut cdb = in_cdb(0, 8);
        cdb[0] = opcode;
        client.request(&cdb, &[], null());
        client.assert_closed();
        helper.says("Invalid CDB, closing socket.");
    }
}

fn cleanup_without_multipath_is_good(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let mut cdb = [0; 16];
    cdb[0] = 0xff;
    for feature in [0, 1] {
        let client = helper.connect_silently();
        client.read::<4>();
        client.send(&[0, 0, 0, feature]);
        // It may have been closed by now.
        let _ = client.try_send_with(&cdb, &[null().as_fd()]);
        let answer = client.try_answer().ok();
        assert_eq!(answer, subject.differs("cleanup", None, Some(Answer::good(&[]))), "feature word {feature}");
    }
    let client = helper.connect();
    let read_only = File::open("/dev/null").unwrap();
    client.request(&cdb, &[], &read_only);
    let answer = client.try_answer().ok();
    assert_eq!(answer, subject.differs("cleanup", None, Some(Answer::check(0x05, 0x20, 0x00))), "read-only");
    assert_eq!(helper.supervisor().calls(), [], "no device was asked");
}

fn more_than_8192_bytes_close(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    helper.supervisor().reply_with(sg_io::Reply::data(&[7; 8192]));
    let client = helper.connect();
    assert_eq!(client.run(&in_cdb(0, 8192), &[], null()), Answer::good(&[7; 8192]));
    let list: Vec<u8> = (0..8192_u32).map(|byte| byte as u8).collect();
    helper.supervisor().reply_with(sg_io::Reply::data(&[]));
    assert_eq!(client.run(&out_cdb(0, 8192), &list, null()), Answer::good(&[]));
    assert_eq!(helper.supervisor().calls()[1].buffer, list);
    for (cdb, list) in [(in_cdb(0, 8193), 0), (in_cdb(0, 65535), 0), (out_cdb(0, 8193), 8193)] {
        let client = helper.connect();
        client.send_with(&cdb, &[null().as_fd()]);
        // It may have been closed by now.
        let _ = client.try_send_with(&vec![0; list], &[]);
        client.assert_closed();
    }
    assert_eq!(helper.supervisor().calls().len(), 2, "no device was asked");
}

fn command_without_data_reaches_the_unit(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    helper.supervisor().reply_with(sg_io::Reply::data(&[7; 8192]));
    assert_eq!(client.run(&in_cdb(0, 0), &[], null()), Answer::good(&[]));
    helper.supervisor().reply_with(sg_io::Reply::data(&[]));
    assert_eq!(client.run(&out_cdb(3, 0), &[], null()), Answer::good(&[]));
    let calls = helper.supervisor().calls();
    assert_eq!((calls[0].command.as_slice(), calls[1].command.as_slice()), (&in_cdb(0, 0)[..], &out_cdb(3, 0)[..]));
    assert_eq!((calls[0].transfer_length, calls[1].transfer_length), (8192, 0));
}

fn length_is_in_bytes_7_and_8(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    let mut cdb = out_cdb(0, 24);
    cdb[6] = 1;
    assert_eq!(client.run(&cdb, &[9; 24], null()), Answer::good(&[]));
    let call = &helper.supervisor().calls()[0];
    assert_eq!((&call.command[..], call.transfer_length, &call.buffer[..]), (&cdb[..], 24, &[9; 24][..]));
}

fn commands_reach_the_unit_byte_for_byte(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    for byte in 0..=255_u8 {
        let mut cdb = [byte; 16];
        (cdb[0], cdb[7], cdb[8]) = (0x5e, 0, 24);
        client.run(&cdb, &[], null());
        assert_eq!(helper.supervisor().calls().pop().unwrap().command, cdb);
        cdb[0] = 0x5f;
        let list = [byte; 24];
        client.run(&cdb, &list, null());
        let call = helper.supervisor().calls().pop().unwrap();
        assert_eq!((call.command, call.buffer), (cdb.to_vec(), list.to_vec()));
    }
}

fn list_in_pieces_is_taken(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    let list: Vec<u8> = (0..24).collect();
    client.send_with(&out_cdb(0, 24), &[null().as_fd()]);
    for byte in &list {
        client.send(&[*byte]);
    }
    assert_eq!(client.answer(), Answer::good(&[]));
    assert_eq!(helper.supervisor().calls()[0].buffer, list);
}

fn end_at_any_byte_closes(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let before = helper.process().descriptors().len();
    let request = [&out_cdb(0, 24)[..], &[0; 24]].concat();
    for count in 0..request.len() {
        let client = helper.connect();
        if count > 0 {
            client.send_with(&request[..count], &[null().as_fd()]);
        }
        client.finish_sending();
        client.assert_closed();
        let in_list = count >= 16;
        let says = helper.stderr().contains("Unexpected end-of-file before all data were read");
        assert!(says || !in_list, "{count} bytes: {}", helper.stderr());
    }
    assert_eq!(helper.supervisor().calls(), [], "no device was asked");
    eventually("no descriptor is left behind", || (helper.process().descriptors().len() <= before).then_some(()));
}

fn client_that_ends_sending_gets_its_answer(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    client.request(&in_cdb(0, 8), &[], null());
    client.finish_sending();
    assert_eq!(client.answer(), Answer::io_process_terminated());
    client.assert_closed();
}

fn client_that_leaves_does_not_stop_its_command(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    helper.supervisor().hold();
    let client = helper.connect();
    client.request(&out_cdb(0, 24), &[0; 24], null());
    helper.supervisor().wait_for_held(1);
    drop(client);
    let other = helper.connect();
    assert_eq!(helper.supervisor().held(), 1, "it still runs");
    helper.supervisor().release(sg_io::Reply::data(&[]));
    helper.says("Broken pipe");
    helper.supervisor().reply_with(sg_io::Reply::data(&[]));
    assert_eq!(other.run(&out_cdb(0, 24), &[0; 24], null()), Answer::good(&[]));
}

fn pipelined_requests_are_answered_in_order(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    helper.supervisor().reply_with(|call| sg_io::Reply::data(&[call.command[1]])(call));
    let client = helper.connect();
    for action in 0..20 {
        client.request(&in_cdb(action, 8), &[], null());
    }
    for action in 0..20 {
        assert_eq!(client.answer(), Answer::good(&[action]));
    }
}

fn client_that_never_reads_stalls_itself_alone(subject: &Subject) {
    let mut helper = subject.command().supervised().serve();
    helper.supervisor().reply_with(sg_io::Reply::data(&[7; 8192]));
    let deaf = helper.connect();
    deaf.socket().set_nonblocking(true).unwrap();
    // The helper has filled its side once nothing more can be sent for a while.
    let mut refused = None;
    eventually("the helper takes no more", || {
        let sent = deaf.try_send_with(&in_cdb(0, 8192), &[null().as_fd()]);
        match (sent, refused) {
            (Ok(()), _) => refused = None,
            (Err(_), None) => refused = Some(std::time::Instant::now()),
            (Err(_), Some(since)) if since.elapsed() > Duration::from_millis(200) => return Some(()),
            (Err(_), Some(_)) => {}
        }
        None
    });
    assert_eq!(helper.connect().run(&in_cdb(0, 8192), &[], null()), Answer::good(&[7; 8192]));
    helper.signal(Signal::TERM);
    assert_eq!(helper.wait().code(), Some(0), "{}", helper.stderr());
}

fn half_sent_request_stalls_itself_alone(subject: &Subject) {
    let helper = subject.serve();
    let request = [&out_cdb(0, 24)[..], &[0; 24]].concat();
    let halves: Vec<Client> = [0, 1, 15, 16, 39]
        .into_iter()
        .map(|count| {
            let client = helper.connect();
            if count > 0 {
                client.send_with(&request[..count], &[null().as_fd()]);
            }
            client
        })
        .collect();
    let silent = helper.connect_silently();
    silent.send(&[0; 3]);
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
    // They are not closed: libvirt takes that for a dead helper.
    assert!(holds_for(Duration::from_millis(300), || halves.iter().all(Client::is_silent)), "closed");
    for (client, count) in halves.iter().zip([0, 1, 15, 16, 39]) {
        let rest = &request[count..];
        if count == 0 {
            client.send_with(rest, &[null().as_fd()])
        } else {
            client.send(rest)
        }
        assert_eq!(client.answer(), Answer::io_process_terminated(), "from byte {count} on");
    }
}

fn client_that_leaves_between_requests_is_not_logged(subject: &Subject) {
    let helper = subject.serve();
    drop(helper.connect_silently());
    drop(helper.connect());
    for count in 1..16 {
        let client = helper.connect();
        client.send_with(&in_cdb(0, 8)[..count], &[null().as_fd()]);
    }
    let client = helper.connect();
    client.run(&in_cdb(0, 8), &[], null());
    drop(client);
    let end = helper.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
}

fn protocol_violations_do_not_flood_the_log(subject: &Subject) {
    let helper = subject.serve();
    for _ in 0..500 {
        let client = helper.connect();
        client.send(&in_cdb(0, 8));
        client.assert_closed();
    }
    let end = helper.terminate();
    let lines = end.stderr.lines().count();
    assert!(subject.differs("log-flood", lines == 500, (1..100).contains(&lines)), "{lines} lines");
}

/// Each way to break the protocol, over and over: 10,000 connections in all.
fn protocol_violations_leave_nothing_behind(subject: &Subject) {
    let helper = subject.serve();
    let break_it = |kind: usize| {
        let device = null();
        let one = [device.as_fd()];
        let client = helper.connect_silently();
        if kind == 0 {
            return;
        }
        client.read::<4>();
        if kind < 4 {
            let _ = client.try_send_with(&[0xff; 4][..kind], &[]);
            return;
        }
        client.send(if kind == 4 { &[0xff; 4] } else { &[0; 4] });
        let mut invalid = in_cdb(0, 8);
        invalid[0] = 0x12;
        // A violation may close the connection before the rest is sent.
        let _ = match kind {
            5 => client.try_send_with(&in_cdb(0, 8), &[]),
            6 => client.try_send_with(&in_cdb(0, 8), &[one[0]; 2]),
            7 => client.try_send_with(&in_cdb(0, 8), &[one[0]; 17]),
            8 => client.try_send_with(&in_cdb(0, 8), &[one[0]; 253]),
            9 => client
                .try_send_with(&in_cdb(0, 8)[..4], &one)
                .and_then(|()| client.try_send_with(&in_cdb(0, 8)[4..], &one)),
            10 => client.try_send_with(&invalid, &one),
            11 => client.try_send_with(&in_cdb(0, 8193), &one),
            12 => client.try_send_with(&out_cdb(0, 8193), &one),
            // Half a CDB, and half a list; the client leaves.
            13 => return client.send_with(&in_cdb(0, 8)[..9], &one),
            14 => return client.send_with(&[&out_cdb(0, 24)[..], &[0; 9]].concat(), &one),
            // The client leaves before its answer.
            15 => return client.send_with(&in_cdb(0, 8), &one),
            _ => client.try_send_with(&[in_cdb(0, 8), in_cdb(0, 8)].concat(), &one),
        };
        if kind == 16 {
            client.answer();
        }
        client.assert_closed();
    };
    const KINDS: usize = 17;
    let round = |connections: usize| {
        thread::scope(|scope| {
            for worker in 0..4 {
                let break_it = &break_it;
                scope.spawn(move || (worker..connections).step_by(4).for_each(|count| break_it(count % KINDS)));
            }
        });
    };
    let process = helper.process();
    // The helper keeps some memory and threads that it makes for its first clients.
    round(1000);
    let settled = || {
        eventually("the descriptors are closed", || {
            (process.descriptors().len() < 16).then(|| process.descriptors().len())
        })
    };
    let (descriptors, resident) = (settled(), process.resident());
    let threads = process.threads().len();
    round(9000);
    eventually("as many descriptors as before", || (process.descriptors().len() <= descriptors).then_some(()));
    eventually("as many threads as before", || (process.threads().len() <= threads).then_some(()));
    let grown = process.resident().saturating_sub(resident);
    assert!(grown < 1024, "{grown} KiB more resident memory than the {resident} before");
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}
