//! Block devices of every kind, as sysfs describes them: the helper finds a sysfs that the test made.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use conformance::sg_io::Reply;
use conformance::{Answer, Client, Helper, Start, Subject, against_each_helper, eventually, in_cdb, out_cdb};
use rustix::io::Errno;

against_each_helper!(
    whole_unit_is_reserved,
    known_device_is_served_without_sysfs,
    a_known_device_takes_two_system_calls_to_route,
    nvme_namespace_gets_no_sg_io,
    multipath_map_is_not_reserved_through_one_path,
    map_without_a_path_gets_no_command,
    suspended_map_gets_the_read_again,
    part_of_a_unit_is_not_reserved,
    part_of_a_namespace_gets_no_sg_io,
    device_without_sysfs_entry_is_not_reserved,
    manager_option_selects_the_manager,
);

/// The number of the devices of these tests, which is that of `/dev/loop0`.
const NUMBER: &str = "7:0";

/// A block device to pass. `None`, with the reason, when the kernel has none.
fn block_device() -> Option<File> {
    let device = File::options().read(true).write(true).open("/dev/loop0");
    device.inspect_err(|error| println!("skipped: needs a block device: /dev/loop0: {error}")).ok()
}

/// A sysfs in which the device is `name`, with these attributes and this one device beneath it, which works.
fn sysfs(root: &Path, name: &str, attributes: &[(&str, &str)], slave: Option<&str>) {
    let device = |name: &str, number: &str| {
        let directory = root.join("devices/virtual/block").join(name);
        fs::create_dir_all(directory.join("slaves")).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        fs::create_dir_all(root.join("dev/block")).unwrap();
        symlink(&directory, root.join("dev/block").join(number)).unwrap();
        directory
    };
    // The subsystem whose devices have such names.
    let subsystem = |directory: &Path, name: &str| {
        let subsystem = [("sd", "scsi"), ("nvme", "nvme"), ("vd", "virtio")].iter().find(|row| name.starts_with(row.0));
        if let Some((_, subsystem)) = subsystem {
            fs::create_dir_all(directory.join("device")).unwrap();
            fs::write(directory.join("device/state"), "running\n").unwrap();
            symlink(Path::new("../../../bus").join(subsystem), directory.join("device/subsystem")).unwrap();
        }
    };
    let directory = device(name, NUMBER);
    if let Some((disk, _)) = name.split_once('/') {
        let disk_directory = directory.parent().unwrap();
        fs::create_dir_all(disk_directory.join("slaves")).unwrap();
        subsystem(disk_directory, disk);
    } else {
        subsystem(&directory, name);
    }
    for (attribute, value) in attributes {
        let path = directory.join(attribute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }
    if let Some(slave) = slave {
        let beneath = device(slave, "8:0");
        subsystem(&beneath, slave);
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

/// The answers to IN and RESERVE when the logical unit returns GOOD.
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

fn whole_unit_is_reserved(subject: &Subject) {
    let Some(device) = block_device() else { return };
    // The last two are no SCSI disks to Linux; but they may take the commands all the same.
    for name in ["sdx", "vdx", "vendorx"] {
        let helper = with_sysfs(subject, name, &[], None).serve();
        assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])], "{name}");
    }
}

fn known_device_is_served_without_sysfs(subject: &Subject) {
    let Some(device) = block_device() else { return };
    if !Path::new("/sys/block/loop0/diskseq").exists() {
        println!("skipped: needs a kernel with /sys/block/loop0/diskseq");
        return;
    }
    let start = with_sysfs(subject, "sdx", &[], None);
    let sysfs = start.path("sys");
    let helper = start.serve();
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])]);
    for directory in ["dev", "devices"] {
        fs::remove_dir_all(sysfs.join(directory)).unwrap();
    }
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])]);
}

/// System calls by which something may be found out about a file. `open` is there by the names that it has today.
const LOOKS: [&str; 9] =
    ["openat", "openat2", "readlink", "readlinkat", "newfstatat", "fstat", "statx", "getdents64", "ioctl"];

/// The system calls of these that a PERSISTENT RESERVE IN takes on a device that was asked before.
fn looks(start: Start, device: &File) -> Vec<String> {
    let helper = start.stopping_at(&LOOKS).socket().start();
    helper.supervisor().let_go();
    eventually("it can be connected to", || Client::try_connect(&helper.socket()).ok());
    helper.supervisor().reply_with(Reply::data(&[7; 8]));
    let client = helper.connect();
    let mut looks = Vec::new();
    for _ in 0..3 {
        helper.supervisor().passed();
        assert_eq!(client.run(&in_cdb(0, 8), &[], device), Answer::good(&[7; 8]));
        let thread = helper.supervisor().calls().last().unwrap().thread;
        let passed = helper.supervisor().passed().into_iter().filter(|passed| passed.thread == thread);
        looks = passed.map(|passed| passed.call).collect();
    }
    looks
}

fn a_known_device_takes_two_system_calls_to_route(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let start = || with_sysfs(subject, "sdx", &[], None);
    let routed = looks(start(), &device);
    // QEMU's helper makes no system call to route a command.
    let mut unrouted = looks(start().args(subject.differs("manager-option", None, Some("--manager=sg-io"))), &device);
    unrouted
        .extend(subject.differs("manager-option", &[][..], &["fstat", "ioctl"]).iter().map(|call| (*call).to_owned()));
    assert_eq!(routed, unrouted);
}

fn nvme_namespace_gets_no_sg_io(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "nvme0n1", &[], None).serve();
    // The device behind it is no namespace, and refuses.
    let [read, reserve] =
        [Answer::good(&[7; 8]), Answer::good(&[])].map(|good| subject.differs("nvme", good, refused()));
    assert_eq!(answers(&helper, &device), [read, reserve]);
    assert_eq!(helper.supervisor().calls().len(), subject.differs("nvme", 2, 0));
}

fn multipath_map_is_not_reserved_through_one_path(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).serve();
    let [read, reserve] = answers(&helper, &device);
    assert_eq!(read, Answer::good(&[7; 8]));
    // There is no such map, and the status depends on the machine. The test only requires that the path gets no command.
    assert_eq!(reserve.status == 0, subject.differs("one-path", true, false), "{reserve:?}");
    let is_logged = helper.stderr().contains("multipath map mpatha");
    assert_eq!(is_logged, subject.differs("one-path", false, true), "{}", helper.stderr());
}

fn map_without_a_path_gets_no_command(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let start = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda"));
    fs::write(start.path("sys/devices/virtual/block/sda/device/state"), "offline\n").unwrap();
    let helper = start.serve();
    let not_ready = || Answer::check(0x02, 0x04, 0x00);
    let [read, reserve] =
        [Answer::good(&[7; 8]), Answer::good(&[])].map(|good| subject.differs("map-without-path", good, not_ready()));
    assert_eq!(answers(&helper, &device), [read, reserve]);
    assert_eq!(helper.supervisor().calls().len(), subject.differs("map-without-path", 2, 0));
}

fn suspended_map_gets_the_read_again(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).serve();
    let asked = AtomicUsize::new(0);
    helper.supervisor().reply_with(move |call| match asked.fetch_add(1, Relaxed) {
        0 | 1 => Reply::Errno(Errno::AGAIN.raw_os_error()),
        _ => Reply::data(&[7; 8])(call),
    });
    let answer = helper.connect().run(&in_cdb(0, 8), &[], &device);
    assert_eq!(answer, subject.differs("map-suspended", Answer::io_process_terminated(), Answer::good(&[7; 8])));
}

fn part_of_a_unit_is_not_reserved(subject: &Subject) {
    let Some(device) = block_device() else { return };
    for (name, attributes, slave) in [
        ("sdx/sdx1", &[("partition", "1")][..], None),
        ("dm-1", &[("dm/uuid", "LVM-Zx"), ("dm/name", "vg-lv")], Some("sda")),
        ("dm-2", &[("dm/uuid", "CRYPT-LUKS2-x"), ("dm/name", "crypt")], Some("sda")),
        ("dm-3", &[("dm/uuid", ""), ("dm/name", "nameless")], Some("sda")),
        ("md0", &[], Some("sda")),
        // By name a path of a map, and a map; by UUID neither.
        ("dm-4", &[("dm/uuid", "part1-mpath-360014050000000000000000000000001"), ("dm/name", "mpatha1")], Some("sda")),
    ] {
        let helper = with_sysfs(subject, name, attributes, slave).serve();
        let reserved = subject.differs("part-of-a-unit", Answer::good(&[]), refused());
        assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), reserved], "{name}");
    }
}

fn part_of_a_namespace_gets_no_sg_io(subject: &Subject) {
    let Some(device) = block_device() else { return };
    for (name, attributes, slave) in [
        ("nvme0n1/nvme0n1p1", &[("partition", "1")][..], None),
        ("dm-1", &[("dm/uuid", "LVM-Zx"), ("dm/name", "vg-lv")], Some("nvme0n1")),
    ] {
        let helper = with_sysfs(subject, name, attributes, slave).serve();
        let read = subject.differs("nvme", Answer::good(&[7; 8]), refused());
        let reserved = subject.differs("part-of-a-unit", Answer::good(&[]), refused());
        assert_eq!(answers(&helper, &device), [read, reserved], "{name}");
        assert_eq!(helper.supervisor().calls().len(), subject.differs("nvme", 2, 0), "{name}");
    }
}

fn device_without_sysfs_entry_is_not_reserved(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let start = with_sysfs(subject, "sdx", &[], None);
    fs::remove_file(start.path("sys/dev/block").join(NUMBER)).unwrap();
    let helper = start.serve();
    let reserved = subject.differs("unexplained-device", Answer::good(&[]), refused());
    assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), reserved]);
}

fn manager_option_selects_the_manager(subject: &Subject) {
    let Some(device) = block_device() else { return };
    let mut helper = with_sysfs(subject, "dm-0", &MULTIPATH, Some("sda")).arg("--manager=sg-io").socket().start();
    let known = eventually("it serves, or has ended", || match helper.ended() {
        Some(status) => Some(status.code() != Some(1)),
        None => Client::try_connect(&helper.socket()).ok().map(|_| true),
    });
    assert_eq!(known, subject.differs("manager-option", false, true), "{}", helper.stderr());
    if known {
        assert_eq!(answers(&helper, &device), [Answer::good(&[7; 8]), Answer::good(&[])]);
    }
}
