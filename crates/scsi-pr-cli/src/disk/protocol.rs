//! The messages of the control socket, for both ends.
//!
//! One JSON object a line, answered by one line each:
//!
//! ```text
//! {"request":"units"}
//!   {"units":[{"name":"shared","path":"/srv/shared.img","target":"iqn…","lun":0,"uuid":"…","naa":"…","serial":"…",
//!              "bytes":1073741824,"epoch":1,"sessions":[{"initiator":"iqn…","target-port":1}]}]}
//! {"request":"execute","unit":"shared","initiator":"iqn…","target-port":1,"cdb":"5e00…","data":""}
//!   {"status":0,"sense":"","data":"…"}
//! {"request":"read","unit":"shared","action":3}
//!   {"status":0,"sense":"","data":"…"}
//! ```
//!
//! `execute` runs PERSISTENT RESERVE IN (5Eh) or OUT (5Fh) as the initiator and target port (1 if it is missing), through
//! the disk's gate. `cdb`, `data` and `sense` are hexadecimal, `status` is the SCSI status.
//!
//! PERSISTENT RESERVE OUT may have conditions, which the gate checks together with the change. `expected-reservation` is the
//! hexadecimal data of READ RESERVATION: the reservation and the generation. `expected-holder` is the nexus that must hold the
//! reservation, `{"transport-id":"05…","target-port":1}`, with its TransportID in hexadecimal digits. `without-session` names an
//! initiator that must have no session. If a condition does not hold, nothing is changed, and the answer is
//! `{"unmet":"reservation"}` or `{"unmet":"session"}`.
//!
//! `read` returns all data of a service action of PERSISTENT RESERVE IN, also those beyond the longest allocation length.
//!
//! A request that cannot be understood has the answer `{"error":"…"}`.

use anyhow::{Context, Result};
use scsi_pr::{Nexus, TransportId};
use serde::{Deserialize, Serialize};

use super::hex;
use super::names::InitiatorIqn;

/// The longest request, in bytes.
pub(crate) const MAX_REQUEST: u64 = 64 << 10;

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    Units {},
    #[serde(rename_all = "kebab-case")]
    Execute {
        unit: String,
        initiator: InitiatorIqn,
        #[serde(default = "first_port")]
        target_port: u16,
        cdb: String,
        #[serde(default)]
        data: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected_reservation: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected_holder: Option<ExpectedHolder>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        without_session: Option<InitiatorIqn>,
    },
    Read {
        unit: String,
        /// The code of the service action.
        action: u8,
    },
}

/// The nexus that must hold the reservation.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ExpectedHolder {
    transport_id: String,
    target_port: u16,
}

impl From<&Nexus> for ExpectedHolder {
    fn from(nexus: &Nexus) -> Self {
        Self { transport_id: hex::encode(nexus.initiator().bytes()), target_port: nexus.relative_target_port() }
    }
}

impl TryFrom<ExpectedHolder> for Nexus {
    type Error = anyhow::Error;

    fn try_from(ExpectedHolder { transport_id, target_port }: ExpectedHolder) -> Result<Self> {
        let bytes = hex::decode(&transport_id).context("the TransportID of the expected holder is not hexadecimal")?;
        Ok(Self::new(TransportId::from_bytes(&bytes)?, target_port))
    }
}

const fn first_port() -> u16 {
    1
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer {
    Units { units: Vec<Unit> },
    Done { status: u8, sense: String, data: String },
    Unmet { unmet: Condition },
    Error { error: String },
}

/// The condition of a change that does not hold.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Condition {
    Reservation,
    Session,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) target: String,
    pub(crate) lun: u8,
    pub(crate) uuid: String,
    pub(crate) naa: String,
    pub(crate) serial: String,
    pub(crate) bytes: u64,
    pub(crate) epoch: u64,
    pub(crate) sessions: Vec<Session>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Session {
    pub(crate) initiator: String,
    pub(crate) target_port: u16,
}
