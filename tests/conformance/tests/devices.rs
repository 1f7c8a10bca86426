//! Block devices that are no whole logical unit, as sysfs describes them: the helper finds a sysfs that the test made.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use conformance::sg_io::Reply;
use conformance::{Answer, Client, Helper, Start, Subject, against_each_helper, in_cdb, out_cdb};

against_each_helper!(
    a_whole_unit_is_reserved,
    a_multipath_map_is_not_reserved_through_one_path,
    what_was_taken_on_a_map_can_be_given_up,
    a_part_of_a_unit_is_not_reserved_as_the_unit,
    an_unexplained_device_is_not_reserved,
    the_manager_can_be_named,
);

/// What the devices of these tests are in the kernel's numbering: `/dev/loop0`.
const NUMBER: &str = "7:0";

/// A block device to pass. `None`, loudly, when the kernel has none.
fn block_device() -> Option<File> {
    let device = File::options().read(true).write(true).open("/dev/loop0");
    device.inspect_err(|error| eprintln!("NOT TESTED with a block device: /dev/loop0: {error}")).ok()
}

/// A sysfs in which the device is `name`, with these attributes and this one device beneath it.
fn sysfs(root: &Path, name: &str, attributes: &[(&str, &str)], slave: Option<&str>) {
    let device = |name: &str, number: &str| {
        let directory = root.join("devices/virtual/block").join(name);
        fs::create_dir_all(directory.join("slaves")).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        fs::create_dir_all(root.join("dev/block")).unwrap();
        symlink(&directory, root.join("dev/block").join(number)).unwrap();
        directory
    };
    let directory = device(name, NUMBER);
    for (attribute, value) in attributes {
        let path = directory.join(attribute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }
    if let Some(slave) = slave {
        let beneath = device(slave, "8:0");
        symlink(beneath, directory.join("slaves").join(slave)).unwrap();
    }
}

/// A start that finds the sysfs in its directory, as it will be seen at /sys.
fn with_sysfs(subject: &Subject, name: &str, attributes: &[(&str, &str)], slave: Option<&str>) -> Start {
    let start = subject.command();
    let root = start.path("sys");
    fs::create_dir(&root).unwrap();
    sysfs(&root, name, attributes, slave);
    let mount = format!("mount --bind {} /sys", root.display());
    start.supervised().shell(&format!(r#"set -- unshare --mount sh -c '{mount} && exec "$@"' sh "$@""#))
}

const LIST: [u8; 24] = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];

/// What IN and RESERVE are answered with, the unit itself saying GOOD.
#[track_caller]
fn answers(helper: &Helper, device: &File) -> [Answer; 2] {
    let client = helper.connect();
    helper.supervisor().reply_with(Reply::data(&[7; 8]));
    let read = client.run(&in_cdb(0, 8), &[], device);
    let reserve = run_out(helper, &client, 1, &LIST, device);
    [read, reserve]
}

/// An OUT of type WRITE EXCLUSIVE.
#[track_caller]
fn run_out(helper: &Helper, client: &Client, service_action: u8, list: &[u8; 24], device: &File) -> Answer {
    helper.supervisor().reply_with(Reply::data(&[]));
    let before = helper.supervisor().calls().len();
    let mut cdb = out_cdb(service_action, 24);
    cdb[2] = 0x01;
    let answer = client.run(&cdb, list, device);
    let sent = helper.supervisor().calls().len() - before;
    assert_eq!(sent == 1, answer.status == 0, "what is refused was not sent: {answer:?}");
    answer
}

fn refused() -> Answer {
    Answer::check(0x05, 0x20, 0x00)
}

const MULTIPATH: [(&str, &str); 2] = [("dm/uuid", "mpath-360014050000000000000000000000001"), ("dm/name", "mpatha")];

fn a_whole_unit_is_reserved(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "sdx", &[], None).serve();
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])]);
}

fn a_multipath_map_is_not_reserved_through_one_path(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).serve();
    let reserved = subject.differs("one-path", Answer::good(&[]), refused());
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), reserved]);
    let told = helper.stderr().contains("multipath map mpatha");
    assert_eq!(told, subject.differs("one-path", false, true), "{}", helper.stderr());
}

fn what_was_taken_on_a_map_can_be_given_up(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).serve();
    let client = helper.connect();
    let unregister = [&LIST[..8], &[0; 16]].concat().try_into().unwrap();
    for (service_action, list) in [(0x02, LIST), (0x00, unregister), (0x06, unregister)] {
        assert_eq!(run_out(&helper, &client, service_action, &list, &device), Answer::good(&[]), "{service_action}");
    }
    for service_action in [0x00, 0x01, 0x03, 0x04, 0x05, 0x06] {
        let answer = run_out(&helper, &client, service_action, &LIST, &device);
        assert_eq!(answer, subject.differs("one-path", Answer::good(&[]), refused()), "{service_action}");
    }
}

fn a_part_of_a_unit_is_not_reserved_as_the_unit(subject: &Subject) {
    let Some(device) = block_device() else { return };
    for (name, attributes, slave) in [
        ("sdx/sdx1", &[("partition", "1")][..], None),
        ("dm-1", &[("dm/uuid", "LVM-Zx"), ("dm/name", "vg-lv")], Some("sda")),
        ("dm-2", &[("dm/uuid", "CRYPT-LUKS2-x"), ("dm/name", "crypt")], Some("sda")),
        ("dm-3", &[("dm/uuid", ""), ("dm/name", "nameless")], Some("sda")),
        ("md0", &[], Some("sda")),
    ] {
        let helper = with_sysfs(subject, name, attributes, slave).serve();
        let reserved = subject.differs("part-of-a-unit", Answer::good(&[]), refused());
        assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), reserved], "{name}");
    }
}

fn an_unexplained_device_is_not_reserved(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let start = with_sysfs(subject, "sdx", &[], None);
    fs::remove_file(start.path("sys/dev/block").join(NUMBER)).unwrap();
    let helper = start.serve();
    let reserved = subject.differs("unexplained-device", Answer::good(&[]), refused());
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), reserved]);
}

fn the_manager_can_be_named(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let mut helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).arg("--manager=sg-io").socket().start();
    let known = conformance::eventually("it serves, or has ended", || match helper.ended() {
        Some(status) => Some(status.code() != Some(1)),
        None => Client::try_connect(&helper.socket()).ok().map(|_| true),
    });
    assert_eq!(known, subject.differs("manager-option", false, true), "{}", helper.stderr());
    if known {
        assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])]);
    }
}
