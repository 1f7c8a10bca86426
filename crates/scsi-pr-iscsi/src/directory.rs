//! [`Directory`]: the targets of a server, the initiators that may use them, and their secrets.

use std::sync::Arc;

use scsi_pr_disk::Target;

use crate::chap::Secret;

/// The targets of a server, and who may use them.
#[derive(Default)]
#[non_exhaustive]
pub struct Directory {
    /// The targets, each with its name.
    pub targets: Vec<TargetEntry>,
    /// The accounts of CHAP. Without any, every initiator is believed its name.
    pub accounts: Vec<Account>,
}

/// A target.
pub struct TargetEntry {
    /// The iSCSI name.
    pub name: String,
    /// Its logical units.
    pub target: Arc<Target>,
    /// The initiators that may see and use it.
    pub allowed: Allowed,
}

/// A set of initiators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every initiator.
    All,
    /// Those with these names.
    Names(Vec<String>),
}

/// An account of CHAP.
#[derive(Clone, Debug)]
pub struct Account {
    /// CHAP_N of the initiator.
    pub name: String,
    /// The secret of the initiator.
    pub secret: Secret,
    /// The iSCSI names that the account may use: an authenticated peer must not pose as another one.
    pub initiators: Vec<String>,
    /// CHAP_N and the secret of the target, for initiators that authenticate the target.
    pub mutual: Option<(String, Secret)>,
}

impl Allowed {
    /// Whether `initiator` is in the set. iSCSI names are compared without regard to case (RFC 7143 4.2.7.2).
    pub fn contains(&self, initiator: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|name| name.eq_ignore_ascii_case(initiator)),
        }
    }
}

impl Directory {
    /// The target with this name, if `initiator` may see it.
    pub fn target(&self, name: &str, initiator: &str) -> Option<&TargetEntry> {
        self.visible_to(initiator).find(|entry| entry.name.eq_ignore_ascii_case(name))
    }

    /// The targets that `initiator` may see.
    pub fn visible_to(&self, initiator: &str) -> impl Iterator<Item = &TargetEntry> {
        self.targets.iter().filter(move |entry| entry.allowed.contains(initiator))
    }

    /// Whether a session of `initiator` with `target`, or of discovery, may go on.
    pub(crate) fn admits(&self, initiator: &str, target: Option<&str>) -> bool {
        let has_account = self.accounts.is_empty() || self.accounts.iter().any(|account| account.may_use(initiator));
        has_account && target.is_none_or(|target| self.target(target, initiator).is_some())
    }

    /// The account with this name.
    pub fn account(&self, name: &str) -> Option<&Account> {
        self.accounts.iter().find(|account| account.name == name)
    }
}

impl Account {
    /// Whether the account may use this iSCSI name.
    pub fn may_use(&self, initiator: &str) -> bool {
        self.initiators.iter().any(|name| name.eq_ignore_ascii_case(initiator))
    }
}
