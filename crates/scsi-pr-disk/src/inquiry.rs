//! INQUIRY and the VPD pages (SPC-4 6.6 and 7.8, SBC-4 6.6).

use crate::call::Port;
use crate::geometry::{Geometry, MAX_COMPARE_AND_WRITE, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME};
use crate::identity::Identity;

const VENDOR: &[u8; 8] = b"SCSI-PR ";
const PRODUCT: &[u8; 16] = b"DISK            ";

/// Peripheral qualifier and type of a disk.
const DISK: u8 = 0x00;

/// Standard INQUIRY data, 96 bytes.
pub(crate) fn standard() -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = DISK;
    data[2] = 0x06; // SPC-4
    data[3] = 0x10 | 0x02; // HISUP, response data format 2
    data[4] = (data.len() - 5) as u8;
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(revision().as_bytes());
    // SAM-5, iSCSI, SPC-4, SBC-3.
    for (index, version) in [0x00a0_u16, 0x0960, 0x0460, 0x04c0].into_iter().enumerate() {
        data[58 + 2 * index..60 + 2 * index].copy_from_slice(&version.to_be_bytes());
    }
    data
}

/// PRODUCT REVISION LEVEL: the first two numbers of this crate's version, four characters.
fn revision() -> String {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.');
    let revision = format!("{}.{}", numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
    format!("{revision:<4.4}")
}

/// The standard INQUIRY data of a logical unit number that has no unit: peripheral qualifier 011b, type 1Fh.
pub(crate) fn no_unit() -> Vec<u8> {
    let mut data = standard();
    data[0] = 0x7f;
    data
}

type Page = (u8, fn(&Identity, &Port, &Geometry) -> Vec<u8>);

/// The VPD pages, in ascending order.
const PAGES: [Page; 7] = [
    (0x00, supported_pages),
    (0x80, unit_serial_number),
    (0x83, device_identification),
    (0x86, extended_inquiry),
    (0xb0, block_limits),
    (0xb1, block_device_characteristics),
    (0xb2, logical_block_provisioning),
];

/// The VPD page with its header; `None` when there is no such page.
pub(crate) fn vpd(code: u8, identity: &Identity, port: &Port, geometry: &Geometry) -> Option<Vec<u8>> {
    let (_, page) = PAGES.iter().find(|(known, _)| *known == code)?;
    let body = page(identity, port, geometry);
    let mut data = vec![DISK, code];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Some(data)
}

fn supported_pages(_: &Identity, _: &Port, _: &Geometry) -> Vec<u8> {
    PAGES.iter().map(|(code, _)| *code).collect()
}

fn unit_serial_number(identity: &Identity, _: &Port, _: &Geometry) -> Vec<u8> {
    identity.serial().as_bytes().to_vec()
}

/// Device Identification (SPC-4 7.8.6): NAA, T10 vendor ID, SCSI name string of the unit; relative target port, target
/// port group, and the name of the target port.
fn device_identification(identity: &Identity, port: &Port, _: &Geometry) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    /// PROTOCOL IDENTIFIER of iSCSI, with PIV and association "target port".
    const OF_PORT: u8 = 0x90;
    const ISCSI: u8 = 0x50;
    let mut data = Vec::new();
    let mut add = |protocol_and_code_set: u8, association_and_type: u8, designator: &[u8]| {
        data.extend_from_slice(&[protocol_and_code_set, association_and_type, 0, designator.len() as u8]);
        data.extend_from_slice(designator);
    };
    add(BINARY, 0x03, identity.naa());
    let mut t10 = VENDOR.to_vec();
    t10.extend_from_slice(PRODUCT);
    t10.extend_from_slice(identity.serial().as_bytes());
    add(ASCII, 0x01, &t10);
    let digits: String = identity.naa().iter().map(|byte| format!("{byte:02X}")).collect();
    add(UTF8, 0x08, &padded(format!("naa.{digits}").as_bytes()));
    add(ISCSI | BINARY, OF_PORT | 0x04, &[0, 0, port.relative_target_port[0], port.relative_target_port[1]]);
    if !port.name.is_empty() {
        add(ISCSI | UTF8, OF_PORT | 0x08, &padded(port.name.as_bytes()));
    }
    data
}

/// A SCSI name string: NUL-terminated, and padded with NULs to a multiple of four bytes.
fn padded(name: &[u8]) -> Vec<u8> {
    let mut name = name.to_vec();
    name.push(0);
    name.resize(name.len().next_multiple_of(4), 0);
    name
}

/// Extended INQUIRY Data (SPC-4 7.8.7).
fn extended_inquiry(_: &Identity, _: &Port, _: &Geometry) -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 0x01; // SIMPSUP
    body[2] = 0x01; // V_SUP
    body
}

/// Block Limits (SBC-4 6.6.4).
fn block_limits(_: &Identity, _: &Port, geometry: &Geometry) -> Vec<u8> {
    let mut body = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| body[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
    put(4, &[0x01, MAX_COMPARE_AND_WRITE]); // WSNZ
    put(6, &(geometry.physical_blocks() as u16).to_be_bytes()); // OPTIMAL TRANSFER LENGTH GRANULARITY
    put(8, &geometry.max_transfer_blocks().to_be_bytes());
    put(12, &geometry.optimal_transfer_blocks().to_be_bytes());
    put(20, &MAX_UNMAP_BLOCKS.to_be_bytes());
    put(24, &u32::from(MAX_UNMAP_DESCRIPTORS).to_be_bytes());
    put(28, &geometry.physical_blocks().to_be_bytes()); // OPTIMAL UNMAP GRANULARITY
    put(32, &0x8000_0000_u32.to_be_bytes()); // UGAVALID, UNMAP GRANULARITY ALIGNMENT 0
    put(36, &MAX_WRITE_SAME.to_be_bytes()); // MAXIMUM WRITE SAME LENGTH
    body
}

/// Block Device Characteristics (SBC-4 6.6.2): a medium that does not rotate.
fn block_device_characteristics(_: &Identity, _: &Port, _: &Geometry) -> Vec<u8> {
    let mut body = vec![0; 60];
    body[1] = 1;
    body
}

/// Logical Block Provisioning (SBC-4 6.6.6): UNMAP, and WRITE SAME with the UNMAP bit; what is unmapped reads as zeros.
fn logical_block_provisioning(_: &Identity, _: &Port, _: &Geometry) -> Vec<u8> {
    const LBPU: u8 = 0x80;
    const LBPWS: u8 = 0x40;
    const LBPWS10: u8 = 0x20;
    const LBPRZ: u8 = 0x04;
    const THIN_PROVISIONED: u8 = 2;
    vec![0, LBPU | LBPWS | LBPWS10 | LBPRZ, THIN_PROVISIONED, 0]
}
