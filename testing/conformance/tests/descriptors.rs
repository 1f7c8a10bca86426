//! The descriptor of a request: one, with any of the 16 bytes of its CDB.

use std::fs::File;
use std::io::{PipeWriter, Read, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use conformance::{
    Answer, Client, Helper, Subject, against_each_helper, eventually, in_cdb, null, out_cdb, regular_file,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, fcntl_getfl, memfd_create, open};

against_each_helper!(
    descriptor_with_any_byte_of_the_cdb_is_taken,
    descriptor_with_cdb_and_list_in_one_message_is_taken,
    request_without_descriptor_closes,
    descriptor_with_the_handshake_is_lost,
    descriptor_with_the_list_alone_closes,
    second_descriptor_with_the_list_is_dropped,
    more_than_one_descriptor_closes,
    second_request_without_descriptor_closes,
    two_requests_with_one_descriptor_close,
    descriptor_is_closed_before_the_answer,
    received_descriptor_is_close_on_exec,
    descriptor_for_a_full_table_is_not_confused_with_none,
    connections_leave_room_for_descriptors,
    file_that_is_no_block_device_is_refused,
    every_manager_refuses_other_files,
    denied_service_action_is_an_invalid_field,
    process_that_is_not_allowed_is_not_served,
    disk_without_reservations_is_refused,
    out_on_read_only_descriptor_is_refused_after_its_list,
    write_only_descriptor_is_served,
    descriptor_without_access_is_refused,
    same_descriptor_serves_many_requests,
);

const NO_DESCRIPTOR: &str = "No file descriptor in request.";

/// The table is as it was before, once what was sent has been dealt with.
#[track_caller]
fn leaves_nothing(helper: &Helper, test: impl FnOnce()) {
    let count = |of: &dyn Fn(&str) -> bool| {
        helper.process().descriptors().values().filter(|at| of(&at.to_string_lossy())).count()
    };
    let sockets = || count(&|at| at.starts_with("socket:"));
    let nulls = || count(&|at| at == "/dev/null");
    let sockets_before = sockets();
    // The helper keeps some descriptors that it makes for its first command.
    helper.connect().run(&in_cdb(0, 8), &[], null());
    // Until the helper has closed that connection, one descriptor more is open than it keeps.
    eventually("the helper closes the connection", || (sockets() <= sockets_before).then_some(()));
    let (all_before, nulls_before) = (count(&|_| true), nulls());
    test();
    eventually("no descriptor is left behind", || {
        (count(&|_| true) <= all_before && nulls() <= nulls_before).then_some(())
    });
}

#[track_caller]
fn still_serves(client: &Client) {
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn descriptor_with_any_byte_of_the_cdb_is_taken(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    let (cdb, device) = (in_cdb(0, 8), null());
    for carrier in 0..16 {
        client.try_send_with(&cdb[..carrier], &[]).unwrap();
        client.send_with(&cdb[carrier..=carrier], &[device.as_fd()]);
        client.try_send_with(&cdb[carrier + 1..], &[]).unwrap();
        assert_eq!(client.answer(), Answer::io_process_terminated(), "with byte {carrier}");
    }
    for (at, byte) in cdb.iter().enumerate() {
        let descriptors = [device.as_fd()];
        client.send_with(&[*byte], if at == 7 { &descriptors } else { &[] });
    }
    assert_eq!(client.answer(), Answer::io_process_terminated(), "byte by byte");
}

fn descriptor_with_cdb_and_list_in_one_message_is_taken(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    client.send_with(&[&out_cdb(0, 24)[..], &[0; 24]].concat(), &[null().as_fd()]);
    assert_eq!(client.answer(), Answer::io_process_terminated());
    still_serves(&client);
}

fn request_without_descriptor_closes(subject: &Subject) {
    let helper = subject.serve();
    leaves_nothing(&helper, || {
        let client = helper.connect();
        client.send(&in_cdb(0, 8));
        client.assert_closed();
        helper.says(NO_DESCRIPTOR);
    });
}

fn descriptor_with_the_handshake_is_lost(subject: &Subject) {
    let helper = subject.serve();
    leaves_nothing(&helper, || {
        let (cdb, device) = (in_cdb(0, 8), null());
        let client = helper.connect_silently();
        client.send_with(&[0; 4], &[device.as_fd()]);
        client.send(&cdb);
        client.read::<4>();
        client.assert_closed();
        helper.says(NO_DESCRIPTOR);

        // In one message with the CDB, it belongs to the handshake.
        let client = helper.connect_silently();
        client.send_with(&[&[0; 4], &cdb[..]].concat(), &[device.as_fd()]);
        client.read::<4>();
        client.assert_closed();

        let client = helper.connect_silently();
        client.send_with(&[0; 4], &[device.as_fd()]);
        client.read::<4>();
        assert_eq!(client.run(&cdb, &[], &device), Answer::io_process_terminated());
    });
}

fn descriptor_with_the_list_alone_closes(subject: &Subject) {
    let helper = subject.serve();
    leaves_nothing(&helper, || {
        let client = helper.connect();
        client.send(&out_cdb(0, 24));
        // It may have been closed by now.
        let _ = client.try_send_with(&[0; 24], &[null().as_fd()]);
        client.assert_closed();
        helper.says(NO_DESCRIPTOR);
    });
}

fn second_descriptor_with_the_list_is_dropped(subject: &Subject) {
    let helper = subject.serve();
    leaves_nothing(&helper, || {
        let client = helper.connect();
        client.send_with(&out_cdb(0, 24), &[null().as_fd()]);
        client.send_with(&[0; 24], &[null().as_fd()]);
        assert_eq!(client.answer(), Answer::io_process_terminated());
        still_serves(&client);
    });
}

fn more_than_one_descriptor_closes(subject: &Subject) {
    let helper = subject.serve();
    leaves_nothing(&helper, || {
        let device = null();
        for count in [2, 16, 17, 253] {
            let client = helper.connect();
            client.send_with(&in_cdb(0, 8), &vec![device.as_fd(); count]);
            client.assert_closed();
        }
        let client = helper.connect();
        client.send_with(&in_cdb(0, 8)[..8], &[device.as_fd()]);
        // It may have been closed by now.
        let _ = client.try_send_with(&in_cdb(0, 8)[8..], &[device.as_fd()]);
        client.assert_closed();
    });
    if subject.differs("every-violation-logged", true, false) {
        assert_eq!(helper.stderr(), "");
    } else {
        helper.says("More than one file descriptor in request, closing socket.");
    }
}

fn second_request_without_descriptor_closes(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    still_serves(&client);
    client.send(&in_cdb(0, 8));
    client.assert_closed();
    helper.says(NO_DESCRIPTOR);
}

fn two_requests_with_one_descriptor_close(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    client.send_with(&[in_cdb(0, 8), in_cdb(0, 8)].concat(), &[null().as_fd()]);
    assert_eq!(client.answer(), Answer::io_process_terminated());
    client.assert_closed();
    helper.says(NO_DESCRIPTOR);
}

fn descriptor_is_closed_before_the_answer(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    for request in [in_cdb(0, 8), out_cdb(0, 0)] {
        let (mut reader, writer): (_, PipeWriter) = pipe().unwrap();
        client.run(&request, &[], writer);
        // The end comes when the helper's copy, the last one, is closed.
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }
}

fn received_descriptor_is_close_on_exec(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    helper.supervisor().hold();
    let client = helper.connect();
    client.request(&in_cdb(0, 8), &[], null());
    helper.supervisor().wait_for_held(1);
    let descriptor = helper.supervisor().calls()[0].descriptor;
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", helper.process().pid())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let flags = OFlags::from_bits_retain(u32::from_str_radix(flags, 8).unwrap());
    assert!(flags.contains(OFlags::CLOEXEC), "{flags:?}");
}

fn descriptor_for_a_full_table_is_not_confused_with_none(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    leaves_nothing(&helper, || still_serves(&client));
    let full = helper.process().leave_room_for(2);
    let crowd = helper.crowd(10);
    eventually("the table is full", || (helper.process().descriptors().len() == full).then_some(()));
    client.send_with(&in_cdb(0, 8), &[null().as_fd()]);
    let answer = client.try_answer().ok();
    assert_eq!(answer, subject.differs("descriptor-lost", None, Some(Answer::status(0x08))));
    helper.says(subject.differs(
        "descriptor-lost",
        NO_DESCRIPTOR,
        "the kernel dropped the file descriptor of a request",
    ));
    drop((crowd, client));
    helper.connect_once_there_is_room();
}

fn connections_leave_room_for_descriptors(subject: &Subject) {
    let helper = subject.command().shell("ulimit -n 56").serve();
    let client = helper.connect();
    let crowd = helper.crowd(64);
    client.send_with(&in_cdb(0, 8), &[null().as_fd()]);
    assert_eq!(client.try_answer().is_ok(), subject.differs("descriptor-kept-free", false, true));
    drop((crowd, client));
    helper.connect_once_there_is_room();
}

/// Files of every kind that are no block device, and what each is.
fn no_block_devices() -> Vec<(&'static str, OwnedFd)> {
    let (reader, writer) = pipe().unwrap();
    let at = |path, flags| open(path, flags, Mode::empty()).unwrap();
    vec![
        ("regular file", regular_file().into()),
        ("directory", at("/", OFlags::RDONLY | OFlags::DIRECTORY)),
        ("pipe, reading", reader.into()),
        ("pipe, writing", writer.into()),
        // The other end is closed.
        ("socket", UnixStream::pair().unwrap().0.into()),
        ("eventfd", eventfd(0, EventfdFlags::empty()).unwrap()),
        ("memory", memfd_create("nothing", MemfdFlags::CLOEXEC).unwrap()),
        ("/dev/null", null().into()),
        ("/dev/zero", at("/dev/zero", OFlags::RDWR)),
        ("terminal", at("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY)),
        ("the path of a directory", at("/", OFlags::PATH)),
        ("the path of a symbolic link", at("/proc/self", OFlags::PATH | OFlags::NOFOLLOW)),
    ]
}

fn may_write(file: &OwnedFd) -> bool {
    fcntl_getfl(file).unwrap() & OFlags::ACCMODE != OFlags::RDONLY
}

fn file_that_is_no_block_device_is_refused(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    for (name, file) in no_block_devices() {
        assert_eq!(client.run(&in_cdb(0, 8), &[], &file), Answer::io_process_terminated(), "{name}");
        if may_write(&file) {
            let list = [0; 8192];
            assert_eq!(client.run(&out_cdb(0, 8192), &list, &file), Answer::io_process_terminated(), "{name}, OUT");
        }
    }
}

fn every_manager_refuses_other_files(subject: &Subject) {
    let terminated = Answer::io_process_terminated;
    let managers = [
        ("auto", terminated(), terminated()),
        ("sg-io", terminated(), terminated()),
        ("multipath", terminated(), none()),
        ("block", none(), none()),
        ("nvme", none(), none()),
    ];
    // QEMU's helper has none to name.
    for (manager, read, registered) in subject.differs("manager-option", &managers[..0], &managers[..]) {
        let helper = subject.command().arg(format!("--manager={manager}")).serve();
        let client = helper.connect();
        for (name, file) in no_block_devices() {
            assert_eq!(&client.run(&in_cdb(0, 8), &[], &file), read, "{manager}: {name}");
            let expected = if may_write(&file) { registered } else { &none() };
            assert_eq!(&client.run(&out_cdb(0, 24), &REGISTER, &file), expected, "{manager}: {name}, OUT");
        }
    }
}

fn denied_service_action_is_an_invalid_field(subject: &Subject) {
    // QEMU's helper has no such option, and runs every service action.
    let helper =
        subject.command().args(subject.differs("deny-option", None, Some("--deny=register,read-keys"))).serve();
    let client = helper.connect();
    let denied = || Answer::check(0x05, 0x24, 0x00);
    let expected = || subject.differs("deny-option", Answer::io_process_terminated(), denied());
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), expected());
    assert_eq!(client.run(&out_cdb(0, 24), &REGISTER, null()), expected());
    assert_eq!(client.run(&in_cdb(1, 8), &[], null()), Answer::io_process_terminated());
    assert_eq!(client.run(&out_cdb(1, 24), &REGISTER, null()), Answer::io_process_terminated());
}

fn process_that_is_not_allowed_is_not_served(subject: &Subject) {
    // QEMU's helper has no such option, and serves every process.
    let helper =
        subject.command().args(subject.differs("allow-option", None, Some("--allow-user=65533"))).socket().start();
    let client = eventually("the helper listens", || Client::try_connect(&helper.socket()).ok());
    assert_eq!(client.try_handshake().is_err(), subject.differs("allow-option", false, true));
}

/// The parameter list of a REGISTER.
const REGISTER: [u8; 24] = {
    let mut list = [0; 24];
    list[15] = 1;
    list
};

fn disk_without_reservations_is_refused(subject: &Subject) {
    let Ok(device) = File::options().read(true).write(true).open("/dev/loop0") else {
        println!("skipped: needs a block device: /dev/loop0");
        return;
    };
    let helper = subject.serve();
    let client = helper.connect();
    let invalid_field = || Answer::check(0x05, 0x24, 0x00);
    // Which of the two it is depends on whether the kernel can be asked for keys.
    let read = client.run(&in_cdb(0, 8), &[], &device);
    assert!(read == invalid_field() || !subject.differs("no-reservations", true, false) && read == none(), "{read:?}");
    let registered = client.run(&out_cdb(0, 24), &REGISTER, &device);
    assert_eq!(registered, subject.differs("no-reservations", invalid_field(), none()));
}

/// INVALID COMMAND OPERATION CODE: the device has no reservations.
fn none() -> Answer {
    Answer::check(0x05, 0x20, 0x00)
}

fn out_on_read_only_descriptor_is_refused_after_its_list(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    let device = File::open("/dev/null").unwrap();
    for length in [0, 24, 8192] {
        let answer = client.run(&out_cdb(0, length), &vec![1; length.into()], &device);
        assert_eq!(answer, Answer::check(0x05, 0x20, 0x00), "a list of {length} bytes");
    }
    assert_eq!(helper.supervisor().calls(), [], "no device was asked");
    assert_eq!(client.run(&in_cdb(0, 8), &[], &device).status, 0, "IN is served");
    assert_eq!(helper.supervisor().calls().len(), 1);
}

fn write_only_descriptor_is_served(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = helper.connect();
    let device = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(client.run(&in_cdb(0, 8), &[], &device).status, 0);
    assert_eq!(client.run(&out_cdb(0, 24), &[0; 24], &device).status, 0);
    assert_eq!(helper.supervisor().calls().len(), 2);
}

fn descriptor_without_access_is_refused(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    let path = open("/dev/null", OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!(client.run(&in_cdb(0, 8), &[], &path), Answer::io_process_terminated());
    // Its access mode is that of a read-only one.
    assert_eq!(client.run(&out_cdb(0, 24), &[0; 24], &path), Answer::check(0x05, 0x20, 0x00));
}

fn same_descriptor_serves_many_requests(subject: &Subject) {
    let helper = subject.serve();
    let device = null();
    leaves_nothing(&helper, || {
        let client = helper.connect();
        for _ in 0..200 {
            assert_eq!(client.run(&in_cdb(0, 8), &[], &device), Answer::io_process_terminated());
        }
    });
}
