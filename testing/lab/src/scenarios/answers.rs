//! Two initiators of one unit through a helper: every answer is, byte for byte, what SG_IO without a helper brings.

use std::path::Path;

use anyhow::Result;
use scsi_pr::PrManager;

use super::{Lab, Scenario};
use crate::helper::Helper;
use crate::report::Report;
use crate::script::{self, Entry};
use crate::scripts;
use crate::sg_raw::SgRaw;

/// The script without a helper.
pub(super) const DIRECT: Scenario = Scenario {
    name: "sg-io",
    boot: "target",
    purpose: "without a helper, the target does what the script expects of it",
    run: |lab, report| {
        let reference = reference(lab)?;
        script::check(report, &reference, &reference)
    },
};

/// Our helper.
pub(super) const OURS: Scenario = Scenario {
    name: "ours",
    boot: "target",
    purpose: "through our helper, every answer is that of SG_IO without one",
    run: |lab, report| {
        let helper = Helper::start(&lab.programs.join("qemu-pr-helper"), "ours", &[])?;
        compare(lab, report, &helper.client())
    },
};

/// Our helper as an ordinary user.
pub(super) const NOBODY: Scenario = Scenario {
    name: "nobody",
    boot: "target",
    purpose: "the same through our helper with -u nobody",
    run: |lab, report| {
        let helper = Helper::start(&lab.programs.join("qemu-pr-helper"), "nobody", &["-u", "nobody"])?;
        compare(lab, report, &helper.client())?;
        // It listens before it drops its privileges; now that it has answered, it has dropped them.
        let status = helper.status()?;
        // CAP_SYS_RAWIO, without which the kernel sends no reservation, and nothing else.
        report.equal("real, effective, saved and file system user", "65534 65534 65534 65534", &status("Uid:"));
        report.equal("effective capabilities", "0000000000020000", &status("CapEff:"));
        Ok(())
    },
};

/// QEMU's helper.
pub(super) const QEMU: Scenario = Scenario {
    name: "qemu",
    boot: "target",
    purpose: "the same through QEMU's own helper",
    run: |lab, report| {
        let helper = Helper::start(Path::new("/usr/bin/qemu-pr-helper"), "qemu", &[])?;
        compare(lab, report, &helper.client())
    },
};

fn compare(lab: &mut Lab, report: &mut Report, manager: &dyn PrManager) -> Result<()> {
    let reference = reference(lab)?;
    let transcript = scripts::run(manager, &*lab.target()?)?;
    script::check(report, &transcript, &reference)
}

/// The transcript without a helper; made once a boot.
fn reference(lab: &mut Lab) -> Result<Vec<Entry>> {
    if lab.reference.is_none() {
        lab.reference = Some(scripts::run(&SgRaw, &*lab.target()?)?);
    }
    Ok(lab.reference.clone().expect("it was just made"))
}
