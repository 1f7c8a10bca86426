//! The initiator ports of a map: by them READ FULL STATUS tells whose a registration is.
//!
//! A reservation key does not tell: several hosts may use the same one.

use scsi_pr::TransportId;

use super::map::Map;
use crate::device::{PortName, Sysfs};

/// The initiator ports by which this host reaches the unit of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostPorts {
    /// For each path of the map, dead ones included: the kernel's name of its device, and the initiator ports that it may
    /// use. None are known where the transport does not show them.
    paths: Vec<(String, Vec<PortName>)>,
    /// The Fibre Channel ports of this host. A path that is lost for long is no path of the map any more, and its port stays.
    fibre_channel: Vec<PortName>,
}

/// Whether a port is one of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    ThisHost,
    AnotherHost,
    /// Sysfs does not show every initiator port of this host, or the port has a protocol that is not known here.
    Unknown,
}

impl HostPorts {
    /// Reads the ports beneath `map`.
    pub(super) fn read(map: &Map, sysfs: &Sysfs) -> Self {
        let paths = map.paths.iter().map(|path| (path.name.clone(), sysfs.block_device_ports(path.number))).collect();
        let fibre_channel = sysfs.fibre_channel_ports();
        Self { paths, fibre_channel }
    }

    /// For tests: one port for each path.
    #[cfg(test)]
    pub(super) fn new(paths: impl IntoIterator<Item = (String, Vec<PortName>)>) -> Self {
        Self { paths: paths.into_iter().collect(), fibre_channel: Vec::new() }
    }

    /// The owner of the port.
    pub(super) fn owner(&self, port: &TransportId) -> Owner {
        let Some(name) = PortName::of(&port.port()) else { return Owner::Unknown };
        if self.fibre_channel.contains(&name) || self.paths.iter().any(|(_, names)| names.contains(&name)) {
            Owner::ThisHost
        } else if !self.paths.is_empty() && self.paths.iter().all(|(_, names)| !names.is_empty()) {
            Owner::AnotherHost
        } else {
            Owner::Unknown
        }
    }

    /// Whether two ports have one [`PortName`].
    pub(super) fn have_one_name(a: &TransportId, b: &TransportId) -> bool {
        PortName::of(&a.port()) == PortName::of(&b.port())
    }

    /// How many paths of the map, of those that `may` have it, can account for registrations of this port of this host.
    /// `None`: the name of the port is enough, as the fabric keeps two ports of one name apart.
    pub(super) fn count_paths(&self, port: &TransportId, may: impl Fn(&str) -> bool) -> Option<usize> {
        match PortName::of(&port.port()) {
            Some(name @ PortName::Iscsi(_)) => {
                Some(self.paths.iter().filter(|(path, names)| names.contains(&name) && may(path)).count())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Number;
    use crate::device::tests::Tree;
    use crate::multipath::map::MapPath;
    use scsi_pr::InitiatorPort;

    /// A map of the paths `sda` 8:0 and `sdb` 8:16 in these directories.
    fn read(tree: &Tree, directories: [&str; 2]) -> HostPorts {
        let mut paths = Vec::new();
        for (index, (directory, name)) in directories.into_iter().zip(["sda", "sdb"]).enumerate() {
            let minor = 16 * u32::try_from(index).unwrap();
            tree.block(&format!("{directory}/block/{name}"), &format!("8:{minor}"), &[]);
            paths.push(MapPath { name: name.to_owned(), number: Number { major: 8, minor }, usable: index == 0 });
        }
        let map = Map {
            number: Number { major: 252, minor: 3 },
            kernel_name: "dm-3".to_owned(),
            alias: "mpatha".to_owned(),
            wwid: "3600".to_owned(),
            paths,
        };
        HostPorts::read(&map, &tree.sysfs())
    }

    fn owner(ports: &HostPorts, port: InitiatorPort<'_>) -> Owner {
        ports.owner(&TransportId::new(port).unwrap())
    }

    fn iscsi(name: &str) -> InitiatorPort<'_> {
        InitiatorPort::Iscsi { name, isid: Some([0, 2, 0x3d, 0, 0, 1]) }
    }

    #[test]
    fn an_iscsi_port_belongs_to_the_host_whose_session_has_its_name() {
        let tree = Tree::new();
        for (host, name) in [(2, "iqn.2026-11.example:a\n"), (3, "iqn.2026-11.example:a\n")] {
            let session = format!("devices/platform/host{host}/session{host}/iscsi_session/session{host}");
            tree.write(&format!("{session}/initiatorname"), name);
        }
        let paths =
            ["devices/platform/host2/session2/target2:0:0/2:0:0:0", "devices/platform/host3/session3/x/3:0:0:0"];
        let ports = read(&tree, paths);
        assert_eq!(owner(&ports, iscsi("iqn.2026-11.example:a")), Owner::ThisHost);
        assert_eq!(owner(&ports, iscsi("iqn.2026-11.example:b")), Owner::AnotherHost);
        assert_eq!(owner(&ports, InitiatorPort::Srp { port_identifier: 1 }), Owner::Unknown);
        let port = TransportId::new(iscsi("iqn.2026-11.example:a")).unwrap();
        assert_eq!(ports.count_paths(&port, |_| true), Some(2));
        assert_eq!(ports.count_paths(&port, |path| path == "sdb"), Some(1));
    }

    #[test]
    fn an_offload_host_has_the_name_of_its_sessions() {
        let tree = Tree::new();
        for host in [2, 3] {
            tree.write(&format!("devices/pci/host{host}/iscsi_host/host{host}/initiatorname"), "iqn.x:a\n");
        }
        let ports = read(&tree, ["devices/pci/host2/session1/t/2:0:0:0", "devices/pci/host3/session2/t/3:0:0:0"]);
        assert_eq!(owner(&ports, iscsi("iqn.x:a")), Owner::ThisHost);
        assert_eq!(owner(&ports, iscsi("iqn.x:b")), Owner::AnotherHost);
    }

    #[test]
    fn a_fibre_channel_port_without_a_path_is_still_of_this_host() {
        let tree = Tree::new();
        for (host, name) in [(2, "0x2100001b32000001\n"), (3, "0x2100001b32000002\n")] {
            tree.write(&format!("devices/pci/host{host}/fc_host/host{host}/port_name"), name);
            tree.write(&format!("class/fc_host/host{host}/port_name"), name);
        }
        tree.write("class/fc_host/host4/port_name", "0x2100001b32000003\n");
        let ports = read(&tree, ["devices/pci/host2/rport-2:0-0/t/2:0:0:0", "devices/pci/host3/rport-3:0-0/t/3:0:0:0"]);
        for (port_name, expected) in [
            (0x2100_001b_3200_0001, Owner::ThisHost),
            (0x2100_001b_3200_0003, Owner::ThisHost),
            (0x2100_001b_3200_0009, Owner::AnotherHost),
        ] {
            assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name }), expected, "{port_name:x}");
            let port = TransportId::new(InitiatorPort::FibreChannel { port_name }).unwrap();
            assert_eq!(ports.count_paths(&port, |_| true), None);
        }
    }

    #[test]
    fn a_sas_port_is_that_of_the_hosts_own_phys() {
        let tree = Tree::new();
        let host = "devices/pci/host2";
        for phy in ["phy-2:0", "phy-2:1"] {
            tree.write(&format!("{host}/{phy}/sas_phy/{phy}/sas_address"), "0x500605b000000001\n");
        }
        tree.write(&format!("{host}/port-2:0/expander-2:0/phy-2:0:0/sas_phy/phy-2:0:0/sas_address"), "0x5006\n");
        let ports = read(&tree, ["devices/pci/host2/port-2:0/t/2:0:0:0", "devices/pci/host2/port-2:1/t/2:0:1:0"]);
        assert_eq!(owner(&ports, InitiatorPort::Sas { address: 0x5006_05b0_0000_0001 }), Owner::ThisHost);
        assert_eq!(owner(&ports, InitiatorPort::Sas { address: 0x5006 }), Owner::AnotherHost);
    }

    #[test]
    fn a_path_whose_transport_shows_no_port_leaves_the_owner_unknown() {
        let tree = Tree::new();
        tree.write("devices/pci/host2/fc_host/host2/port_name", "0x2100001b32000001\n");
        tree.write("devices/pci/host3/fc_host/host3/port_name", "0xffffffffffffffff\n");
        let ports = read(&tree, ["devices/pci/host2/r/t/2:0:0:0", "devices/pci/host3/r/t/3:0:0:0"]);
        assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name: 0x2100_001b_3200_0001 }), Owner::ThisHost);
        assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name: 7 }), Owner::Unknown);
        assert_eq!(owner(&HostPorts::default(), InitiatorPort::FibreChannel { port_name: 7 }), Owner::Unknown);
    }
}
