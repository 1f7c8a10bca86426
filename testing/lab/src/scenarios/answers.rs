//! Two initiators of one unit through a helper: every answer is, byte for byte, the answer to SG_IO without a helper.

use std::path::Path;

use anyhow::Result;
use scsi_pr::PrManager;

use crate::helper::Helper;
use crate::lab::Lab;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::script;
use crate::scripts;

/// The scripts without a helper.
pub(super) const DIRECT: Scenario = Scenario {
    name: "sg-io",
    boot: "target",
    purpose: "without a helper, the target answers as the scripts expect",
    run: |lab, report| {
        let reference = lab.reference()?;
        script::check(report, &reference, &reference)
    },
};

/// This project's helper.
pub(super) const SCSI_PR: Scenario = Scenario {
    name: "scsi-pr",
    boot: "target",
    purpose: "through this project's helper, every answer is that of SG_IO without a helper",
    run: |lab, report| {
        let helper = Helper::start(&lab.helper(), "scsi-pr", &[])?;
        compare(lab, report, &helper.client())
    },
};

/// This project's helper as an ordinary user.
pub(super) const UNPRIVILEGED: Scenario = Scenario {
    name: "unprivileged",
    boot: "target",
    purpose: "the same through this project's helper with -u nobody",
    run: |lab, report| {
        let helper = Helper::start(&lab.helper(), "unprivileged", &["-u", "nobody"])?;
        compare(lab, report, &helper.client())?;
        // The helper listens before it drops its privileges, and drops them before it answers.
        let status = helper.status()?;
        // CAP_SYS_RAWIO alone: the kernel refuses reservations without it.
        report.equal("real, effective, saved and file system user", "65534 65534 65534 65534", &status("Uid:"));
        report.equal("effective capabilities", "0000000000020000", &status("CapEff:"));
        Ok(())
    },
};

/// QEMU's helper.
pub(super) const QEMU: Scenario = Scenario {
    name: "qemu",
    boot: "target",
    purpose: "the same through QEMU's helper",
    run: |lab, report| {
        let helper = Helper::start(Path::new("/usr/bin/qemu-pr-helper"), "qemu", &[])?;
        compare(lab, report, &helper.client())
    },
};

fn compare(lab: &mut Lab, report: &mut Report, manager: &dyn PrManager) -> Result<()> {
    let reference = lab.reference()?;
    let transcript = scripts::run(manager, &*lab.target()?)?;
    script::check(report, &transcript, &reference)
}
