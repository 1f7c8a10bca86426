//! [`Login`]: the login phase of a connection (RFC 7143 6 and 11.12, 11.13), without I/O.

use std::sync::Arc;

use scsi_pr_disk::Target;

use crate::chap::{Algorithm, Challenge};
use crate::directory::{Account, Directory};
use crate::pdu::{Answer, Digests, FINAL, Header, MAX_RECV_DATA_SEGMENT, Pdu, Request};
use crate::text::{Keys, MAX_TEXT};

/// The most unsolicited data of a command in bytes.
const FIRST_BURST: u32 = 64 << 10;
/// The most data in one burst in bytes.
const MAX_BURST: u32 = 1 << 20;
/// MaxRecvDataSegmentLength of an initiator that declares none.
const DEFAULT_SEGMENT: u32 = 8192;

const CONTINUE: u8 = 0x40;
const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// The result of a negotiation.
#[derive(Clone)]
pub struct Negotiated {
    /// InitiatorName.
    pub initiator: String,
    /// ISID.
    pub isid: [u8; 6],
    /// The target with its name; `None` in a discovery session.
    pub target: Option<(String, Arc<Target>)>,
    /// HeaderDigest and DataDigest.
    pub digests: Digests,
    /// The longest data segment that the initiator accepts, in bytes.
    pub max_send_segment: usize,
    /// MaxBurstLength in bytes.
    pub max_burst: usize,
    /// FirstBurstLength in bytes.
    pub first_burst: usize,
    /// InitialR2T: no unsolicited data but immediate data.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// CmdSN of the first command.
    pub command_number: u32,
}

/// The result of a login request.
pub enum LoginStep {
    /// The response; the next request is awaited.
    Continue(Header, Vec<u8>),
    /// The last response; the full feature phase begins.
    Complete(Header, Vec<u8>, Box<Negotiated>),
    /// The response that refuses the login, and why; then the connection is closed.
    Refused(Header, Refusal),
}

/// The reason why a login is refused (RFC 7143 11.13.5: status class and detail).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// 0200h.
    #[error("the login requests break the protocol")]
    InitiatorError,
    /// 0201h.
    #[error("the initiator failed to authenticate")]
    Authentication,
    /// 0202h.
    #[error("the account may not use this initiator name")]
    Authorization,
    /// 0203h. The target does not exist, or the initiator may not see it: both look the same.
    #[error("the initiator may use no target of this name")]
    NotFound,
    /// 0205h.
    #[error("the initiator does not support version 0 of the protocol")]
    Version,
    /// 0206h.
    #[error("a session has one connection")]
    TooManyConnections,
    /// 0207h.
    #[error("a parameter is missing")]
    MissingParameter,
    /// 0209h.
    #[error("the session type is not supported")]
    SessionType,
    /// 0302h.
    #[error("the system has no random numbers for a challenge")]
    OutOfResources,
}

impl Refusal {
    const fn status(self) -> [u8; 2] {
        match self {
            Self::InitiatorError => [2, 0],
            Self::Authentication => [2, 1],
            Self::Authorization => [2, 2],
            Self::NotFound => [2, 3],
            Self::Version => [2, 5],
            Self::TooManyConnections => [2, 6],
            Self::MissingParameter => [2, 7],
            Self::SessionType => [2, 9],
            Self::OutOfResources => [3, 2],
        }
    }
}

/// How far authentication is.
enum Authentication {
    /// The method is not agreed yet.
    Method,
    /// CHAP is agreed; CHAP_A is awaited.
    ChapAlgorithm,
    /// The challenge was sent; the response is awaited.
    ChapResponse(Challenge),
    Done,
}

/// The login phase of one connection.
pub struct Login {
    portal_group: u16,
    /// The CSG that the next request must have.
    current: Option<u8>,
    authentication: Authentication,
    text: Vec<u8>,
    /// ITT, ISID, TSIH and CID of the first request: they stay the same.
    constant: Option<(u32, [u8; 6], u16, u16)>,
    initiator: Option<String>,
    is_discovery: bool,
    target: Option<(String, Arc<Target>)>,
    has_sent_portal_group: bool,
    has_declared: bool,
    negotiated: Negotiated,
    stat_sn: u32,
}

impl Login {
    /// A login through a portal of this group. `stat_sn` is the StatSN of the first response.
    pub fn new(portal_group: u16) -> Self {
        Self {
            portal_group,
            current: None,
            authentication: Authentication::Method,
            text: Vec::new(),
            constant: None,
            initiator: None,
            is_discovery: false,
            target: None,
            has_sent_portal_group: false,
            has_declared: false,
            negotiated: Negotiated {
                initiator: String::new(),
                isid: [0; 6],
                target: None,
                digests: Digests::default(),
                max_send_segment: DEFAULT_SEGMENT as usize,
                max_burst: 256 << 10,
                first_burst: FIRST_BURST as usize,
                initial_r2t: true,
                immediate_data: true,
                command_number: 0,
            },
            stat_sn: 0,
        }
    }

    /// The initiator's name, as far as it is known.
    pub fn initiator(&self) -> Option<&str> {
        self.initiator.as_deref()
    }

    /// Handles a request. `tsih` is the TSIH of the session, should this request complete the login.
    pub fn step(&mut self, pdu: &Pdu<'_>, directory: &Directory, tsih: u16) -> LoginStep {
        match self.try_step(pdu, directory) {
            Ok((flags, keys)) => {
                let is_last = flags & FINAL != 0 && flags & 3 == FULL_FEATURE;
                let header = self.response(pdu, flags, [0, 0], if is_last { tsih } else { 0 });
                if is_last {
                    LoginStep::Complete(header, keys.encode(), Box::new(self.negotiated.clone()))
                } else {
                    LoginStep::Continue(header, keys.encode())
                }
            }
            Err(refusal) => LoginStep::Refused(self.response(pdu, 0, refusal.status(), 0), refusal),
        }
    }

    fn response(&mut self, pdu: &Pdu<'_>, flags: u8, status: [u8; 2], tsih: u16) -> Header {
        let mut header = Header::new(Answer::Login, flags);
        header.0[8..14].copy_from_slice(&pdu.header.0[8..14]);
        header.0[14..16].copy_from_slice(&tsih.to_be_bytes());
        header.set_word(16, pdu.header.task_tag());
        header.set_word(24, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        // The login request is immediate: its CmdSN is that of the first command.
        header.set_word(28, pdu.header.word(24));
        header.set_word(32, pdu.header.word(24));
        header.0[36..38].copy_from_slice(&status);
        header
    }

    /// StatSN of the next response.
    pub fn next_stat_sn(&self) -> u32 {
        self.stat_sn
    }

    fn try_step(&mut self, pdu: &Pdu<'_>, directory: &Directory) -> Result<(u8, Keys), Refusal> {
        if pdu.header.request() != Request::Login {
            return Err(Refusal::InitiatorError);
        }
        let flags = pdu.header.0[1];
        let (transit, more) = (flags & FINAL != 0, flags & CONTINUE != 0);
        let (current, next) = (flags >> 2 & 3, flags & 3);
        self.check_constants(&pdu.header)?;
        let is_valid_transit = !transit || (next > current && next != 2);
        if !matches!(current, SECURITY | OPERATIONAL) || !is_valid_transit || transit && more {
            return Err(Refusal::InitiatorError);
        }
        if self.current.is_some_and(|expected| expected != current) {
            return Err(Refusal::InitiatorError);
        }
        self.current = Some(current);
        self.text.extend_from_slice(pdu.data);
        if self.text.len() > MAX_TEXT {
            return Err(Refusal::InitiatorError);
        }
        if more {
            return Ok((current << 2, Keys::new()));
        }
        let keys = Keys::parse(&std::mem::take(&mut self.text)).map_err(|_| Refusal::InitiatorError)?;
        self.negotiated.command_number = pdu.header.word(24);
        let mut answer = Keys::new();
        self.identify(&keys, directory, &mut answer)?;
        match current {
            SECURITY => self.authenticate(&keys, directory, &mut answer)?,
            // An initiator may begin here, but only where it need not authenticate.
            _ if directory.accounts.is_empty() => self.authentication = Authentication::Done,
            _ if matches!(self.authentication, Authentication::Done) => {}
            _ => return Err(Refusal::Authentication),
        }
        self.negotiate(&keys, &mut answer)?;
        if current == OPERATIONAL && !std::mem::replace(&mut self.has_declared, true) {
            answer.push("MaxRecvDataSegmentLength", MAX_RECV_DATA_SEGMENT.to_string());
        }
        let is_done = matches!(self.authentication, Authentication::Done);
        if transit && is_done {
            self.current = Some(next);
            Ok((FINAL | current << 2 | next, answer))
        } else {
            Ok((current << 2, answer))
        }
    }

    fn check_constants(&mut self, header: &Header) -> Result<(), Refusal> {
        let isid: [u8; 6] = header.0[8..14].try_into().expect("six bytes");
        let half = |at: usize| u16::from_be_bytes([header.0[at], header.0[at + 1]]);
        let (tsih, cid) = (half(14), half(20));
        let constant = (header.task_tag(), isid, tsih, cid);
        if *self.constant.get_or_insert(constant) != constant {
            return Err(Refusal::InitiatorError);
        }
        // VERSION-MIN.
        if header.0[3] != 0 {
            return Err(Refusal::Version);
        }
        if tsih != 0 {
            return Err(Refusal::TooManyConnections);
        }
        self.negotiated.isid = isid;
        Ok(())
    }

    /// InitiatorName, SessionType and TargetName, which the first request has.
    fn identify(&mut self, keys: &Keys, directory: &Directory, answer: &mut Keys) -> Result<(), Refusal> {
        if self.initiator.is_none() {
            let name = keys.get("InitiatorName").ok_or(Refusal::MissingParameter)?;
            if !is_name(name) {
                return Err(Refusal::InitiatorError);
            }
            let name = name.to_ascii_lowercase();
            self.initiator = Some(name.clone());
            self.negotiated.initiator = name;
            match keys.get("SessionType") {
                None | Some("Normal") => {}
                Some("Discovery") => self.is_discovery = true,
                Some(_) => return Err(Refusal::SessionType),
            }
            let target = keys.get("TargetName");
            if !self.is_discovery {
                let entry = directory.target(target.ok_or(Refusal::MissingParameter)?, &self.negotiated.initiator);
                let entry = entry.ok_or(Refusal::NotFound)?;
                self.target = Some((entry.name.clone(), Arc::clone(&entry.target)));
                self.negotiated.target = self.target.clone();
            }
        }
        if self.target.is_some() && !std::mem::replace(&mut self.has_sent_portal_group, true) {
            answer.push("TargetPortalGroupTag", self.portal_group.to_string());
        }
        Ok(())
    }

    fn authenticate(&mut self, keys: &Keys, directory: &Directory, answer: &mut Keys) -> Result<(), Refusal> {
        match &self.authentication {
            Authentication::Method => {
                let offers = |method: &str| {
                    keys.get("AuthMethod").is_some_and(|methods| methods.split(',').any(|one| one == method))
                };
                if !directory.accounts.is_empty() {
                    if keys.get("AuthMethod").is_none() {
                        // The initiator may name itself first.
                        return Ok(());
                    }
                    if !offers("CHAP") {
                        return Err(Refusal::Authentication);
                    }
                    answer.push("AuthMethod", "CHAP");
                    self.authentication = Authentication::ChapAlgorithm;
                } else if keys.get("AuthMethod").is_none() || offers("None") {
                    if keys.get("AuthMethod").is_some() {
                        answer.push("AuthMethod", "None");
                    }
                    self.authentication = Authentication::Done;
                } else {
                    return Err(Refusal::Authentication);
                }
            }
            Authentication::ChapAlgorithm => {
                let offered = keys.get("CHAP_A").ok_or(Refusal::MissingParameter)?;
                let algorithm = Algorithm::choose(offered).ok_or(Refusal::Authentication)?;
                let challenge = Challenge::random(algorithm).map_err(|_| Refusal::OutOfResources)?;
                challenge.values().into_iter().for_each(|(key, value)| answer.push(key, value));
                self.authentication = Authentication::ChapResponse(challenge);
            }
            Authentication::ChapResponse(challenge) => {
                let (Some(name), Some(response)) = (keys.get("CHAP_N"), keys.get("CHAP_R")) else {
                    return Err(Refusal::MissingParameter);
                };
                let account = directory.account(name).ok_or(Refusal::Authentication)?;
                if !challenge.is_answered_by(response, &account.secret) {
                    return Err(Refusal::Authentication);
                }
                if !account.may_use(&self.negotiated.initiator) {
                    return Err(Refusal::Authorization);
                }
                if let Some((key, value)) = answer_to_initiator(keys, challenge, account)? {
                    answer.push("CHAP_N", key);
                    answer.push("CHAP_R", value);
                }
                self.authentication = Authentication::Done;
            }
            Authentication::Done => {}
        }
        Ok(())
    }

    /// The keys of the operational parameters (RFC 7143 13).
    fn negotiate(&mut self, keys: &Keys, answer: &mut Keys) -> Result<(), Refusal> {
        let it = &mut self.negotiated;
        for (key, value) in keys.iter() {
            match key {
                "InitiatorName" | "InitiatorAlias" | "SessionType" | "TargetName" | "AuthMethod" | "CHAP_A"
                | "CHAP_I" | "CHAP_C" | "CHAP_N" | "CHAP_R" => {}
                "HeaderDigest" | "DataDigest" => {
                    let chosen = value.split(',').find(|one| matches!(*one, "CRC32C" | "None"));
                    let chosen = chosen.ok_or(Refusal::InitiatorError)?;
                    *(if key == "HeaderDigest" { &mut it.digests.header } else { &mut it.digests.data }) =
                        chosen == "CRC32C";
                    answer.push(key, chosen);
                }
                "MaxRecvDataSegmentLength" => {
                    it.max_send_segment = number(value, 512, 0xff_ffff)? as usize;
                }
                "MaxBurstLength" => {
                    let chosen = number(value, 512, 0xff_ffff)?.min(MAX_BURST);
                    it.max_burst = chosen as usize;
                    answer.push(key, chosen.to_string());
                }
                "FirstBurstLength" => {
                    let chosen = number(value, 512, 0xff_ffff)?.min(FIRST_BURST);
                    it.first_burst = chosen as usize;
                    answer.push(key, chosen.to_string());
                }
                "InitialR2T" => {
                    it.initial_r2t = boolean(value)?;
                    answer.push(key, value);
                }
                "ImmediateData" => {
                    it.immediate_data = boolean(value)?;
                    answer.push(key, value);
                }
                "DataPDUInOrder" | "DataSequenceInOrder" => {
                    boolean(value)?;
                    answer.push(key, "Yes");
                }
                "MaxConnections" | "MaxOutstandingR2T" => {
                    number(value, 1, 65535)?;
                    answer.push(key, "1");
                }
                "DefaultTime2Wait" => {
                    let chosen = number(value, 0, 3600)?.max(2);
                    answer.push(key, chosen.to_string());
                }
                "DefaultTime2Retain" => {
                    number(value, 0, 3600)?;
                    answer.push(key, "0");
                }
                "ErrorRecoveryLevel" => {
                    number(value, 0, 2)?;
                    answer.push(key, "0");
                }
                "IFMarker" | "OFMarker" => answer.push(key, "No"),
                "iSCSIProtocolLevel" => {
                    number(value, 0, 31)?;
                    answer.push(key, "1");
                }
                "TaskReporting" => answer.push(key, "RFC3720"),
                _ => answer.push(key, "NotUnderstood"),
            }
        }
        it.first_burst = it.first_burst.min(it.max_burst);
        Ok(())
    }
}

/// The target's CHAP_N and CHAP_R, if the initiator sent a challenge of its own.
fn answer_to_initiator(
    keys: &Keys,
    challenge: &Challenge,
    account: &Account,
) -> Result<Option<(String, String)>, Refusal> {
    match (keys.get("CHAP_I"), keys.get("CHAP_C")) {
        (None, None) => Ok(None),
        (Some(id), Some(theirs)) => {
            let (name, secret) = account.mutual.as_ref().ok_or(Refusal::Authentication)?;
            // With one secret for both directions a peer could have the target answer its own challenge.
            if *secret == account.secret {
                return Err(Refusal::Authentication);
            }
            let response = challenge.answer(id, theirs, secret).ok_or(Refusal::Authentication)?;
            Ok(Some((name.clone(), response)))
        }
        _ => Err(Refusal::MissingParameter),
    }
}

/// Whether this is an iSCSI name (RFC 7143 4.2.7.2): at most 223 bytes, of type `iqn.`, `eui.` or `naa.`.
pub fn is_name(name: &str) -> bool {
    let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte) || !byte.is_ascii();
    let lower = name.get(..4).map(str::to_ascii_lowercase);
    name.len() <= 223
        && name.len() > 4
        && matches!(lower.as_deref(), Some("iqn." | "eui." | "naa."))
        && name.bytes().all(is_char)
}

/// A decimal or hexadecimal number in a range.
fn number(text: &str, least: u32, most: u32) -> Result<u32, Refusal> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.ok().filter(|value| (least..=most).contains(value)).ok_or(Refusal::InitiatorError)
}

fn boolean(text: &str) -> Result<bool, Refusal> {
    match text {
        "Yes" => Ok(true),
        "No" => Ok(false),
        _ => Err(Refusal::InitiatorError),
    }
}
