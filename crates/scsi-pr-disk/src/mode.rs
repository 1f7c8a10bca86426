//! MODE SENSE and MODE SELECT (SPC-4 6.11 to 6.14, 7.5; SBC-4 6.5): the pages Caching and Control.

use scsi_pr::SenseCode;

use crate::geometry::Geometry;

/// The settings that MODE SELECT changes. They are those of the unit, for every initiator, until the disk is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModeSettings {
    /// WCE of the Caching page: GOOD for a write does not say that it is durable.
    pub(crate) write_cache: bool,
    /// SWP of the Control page: every write is refused.
    pub(crate) write_protect: bool,
    /// TAS of the Control page.
    pub(crate) task_aborted_status: bool,
}

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL: u8 = 0x3f;

const WCE: u8 = 0x04;
const SWP: u8 = 0x08;
const TAS: u8 = 0x40;

/// The longest parameter list of MODE SELECT with a block descriptor and both pages.
const CACHING_LENGTH: usize = 20;
const CONTROL_LENGTH: usize = 12;

/// PAGE CONTROL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

/// Which of the two sizes of header and of block descriptor a command uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Six,
    Ten,
}

/// The bytes of MODE SENSE's CDB that say what to return.
pub(crate) struct ModeSense {
    pub(crate) form: Form,
    pub(crate) without_block_descriptor: bool,
    pub(crate) long_lba: bool,
    pub(crate) page_control_and_code: u8,
    pub(crate) subpage: u8,
}

impl ModeSettings {
    fn bits(self, page: u8) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        match page {
            CACHING => bit(self.write_cache, WCE),
            _ => bit(self.write_protect, SWP) | bit(self.task_aborted_status, TAS),
        }
    }

    fn page(self, code: u8, values: Values, default: Self) -> Vec<u8> {
        let settings = match values {
            Values::Current => self,
            Values::Changeable => Self { write_cache: true, write_protect: true, task_aborted_status: true },
            Values::Default => default,
        };
        match code {
            CACHING => {
                let mut page = vec![0; CACHING_LENGTH];
                (page[0], page[1]) = (CACHING, (CACHING_LENGTH - 2) as u8);
                page[2] = settings.bits(CACHING);
                page
            }
            _ => {
                let mut page = vec![0; CONTROL_LENGTH];
                (page[0], page[1]) = (CONTROL, (CONTROL_LENGTH - 2) as u8);
                let bits = settings.bits(CONTROL);
                (page[4], page[5]) = (bits & SWP, bits & TAS);
                if values != Values::Changeable {
                    page[3] = 0x10; // QUEUE ALGORITHM MODIFIER: unrestricted reordering
                    page[8..10].copy_from_slice(&[0xff, 0xff]); // BUSY TIMEOUT PERIOD: unlimited
                }
                page
            }
        }
    }

    /// MODE SENSE data: header, block descriptor, pages.
    ///
    /// # Errors
    ///
    /// The sense code of a page that does not exist, or of saved values, which there are none of.
    pub(crate) fn sense(
        self,
        wanted: &ModeSense,
        default: Self,
        geometry: &Geometry,
        is_read_only: bool,
    ) -> Result<Vec<u8>, SenseCode> {
        let values = match wanted.page_control_and_code >> 6 {
            0 => Values::Current,
            1 => Values::Changeable,
            2 => Values::Default,
            _ => return Err(crate::sense_code::SAVING_NOT_SUPPORTED),
        };
        let codes: &[u8] = match (wanted.page_control_and_code & 0x3f, wanted.subpage) {
            (ALL, 0x00 | 0xff) => &[CACHING, CONTROL],
            (CACHING, 0x00) => &[CACHING],
            (CONTROL, 0x00) => &[CONTROL],
            _ => return Err(SenseCode::INVALID_FIELD_IN_CDB),
        };
        let long = wanted.long_lba && wanted.form == Form::Ten;
        let descriptor = if wanted.without_block_descriptor { Vec::new() } else { geometry.block_descriptor(long) };
        let pages: Vec<u8> = codes.iter().flat_map(|code| self.page(*code, values, default)).collect();
        // DPOFUA, and WP.
        let parameter = 0x10 | if is_read_only || self.write_protect { 0x80 } else { 0 };
        let rest = descriptor.len() + pages.len();
        let mut data = match wanted.form {
            Form::Six => vec![(rest + 3) as u8, 0, parameter, descriptor.len() as u8],
            Form::Ten => {
                let length = ((rest + 6) as u16).to_be_bytes();
                vec![length[0], length[1], 0, parameter, u8::from(long), 0, 0, descriptor.len() as u8]
            }
        };
        data.extend_from_slice(&descriptor);
        data.extend_from_slice(&pages);
        Ok(data)
    }

    /// The settings after MODE SELECT with this parameter list.
    ///
    /// # Errors
    ///
    /// The sense code of a list that is cut off, of a page that does not exist, or of a value that cannot be changed.
    pub(crate) fn select(self, form: Form, list: &[u8], default: Self, geometry: &Geometry) -> Result<Self, SenseCode> {
        if list.is_empty() {
            return Ok(self);
        }
        let (header, descriptor_length, long) = match form {
            Form::Six => (4, list.get(3).copied().map(usize::from), false),
            Form::Ten => {
                let length = list.get(6..8).map(|bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]));
                (8, length, list.get(4).is_some_and(|byte| byte & 1 != 0))
            }
        };
        const LIST_LENGTH: SenseCode = SenseCode::PARAMETER_LIST_LENGTH_ERROR;
        let descriptor_length = descriptor_length.ok_or(LIST_LENGTH)?;
        let descriptor = list.get(header..header + descriptor_length).ok_or(LIST_LENGTH)?;
        if !descriptor.is_empty() && !geometry.accepts_block_descriptor(descriptor, long) {
            return Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        let mut settings = self;
        let mut pages = &list[header + descriptor_length..];
        while !pages.is_empty() {
            let length = usize::from(*pages.get(1).ok_or(LIST_LENGTH)?) + 2;
            let page = pages.get(..length).ok_or(LIST_LENGTH)?;
            settings = settings.with_page(page, default)?;
            pages = &pages[length..];
        }
        Ok(settings)
    }

    fn with_page(self, page: &[u8], default: Self) -> Result<Self, SenseCode> {
        const INVALID: SenseCode = SenseCode::INVALID_FIELD_IN_PARAMETER_LIST;
        // PS is reserved in MODE SELECT.
        let code = page[0] & 0x7f;
        let changed = match code {
            CACHING if page.len() == CACHING_LENGTH => Self { write_cache: page[2] & WCE != 0, ..self },
            CONTROL if page.len() == CONTROL_LENGTH => {
                Self { write_protect: page[4] & SWP != 0, task_aborted_status: page[5] & TAS != 0, ..self }
            }
            _ => return Err(INVALID),
        };
        let mut expected = changed.page(code, Values::Current, default);
        expected[0] = page[0];
        if expected == page { Ok(changed) } else { Err(INVALID) }
    }
}
