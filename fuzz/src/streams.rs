//! The helper protocol: the byte streams of a client and of a helper.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use scsi_pr::{Cdb, Command, Completion, Error, Opcode, PrManager, SenseCode};
use scsi_pr_helper::client::Config;
use scsi_pr_helper::wire::{
    self, Event, FEATURE_CLEANUP, RESPONSE_HEADER_LENGTH, RequestDecoder, RequestViolation, ResponseDecoder,
    ResponseViolation,
};
use scsi_pr_helper::{HelperClient, MAX_TRANSFER};

/// Ways to cut a stream, each as sizes of pieces that repeat.
fn cuts(data: &[u8]) -> [Vec<usize>; 3] {
    let by_data = data.iter().map(|byte| usize::from(byte % 29) + 1).chain([1]).collect();
    [vec![1], vec![15, 2, 90], by_data]
}

/// The result of decoding a client's stream.
#[derive(Debug, PartialEq)]
struct Requests {
    events: Vec<Event>,
    violation: Option<RequestViolation>,
    consumed: usize,
    idle: bool,
}

fn decode_requests(data: &[u8], pieces: &[usize]) -> Requests {
    let mut decoder = RequestDecoder::new();
    let mut requests = Requests { events: Vec::new(), violation: None, consumed: 0, idle: false };
    for piece in pieces.iter().cycle() {
        let takes_descriptor = decoder.takes_descriptor();
        let buffer = decoder.wanted();
        assert!(!buffer.is_empty() && buffer.len() <= MAX_TRANSFER);
        assert!(!takes_descriptor || buffer.len() <= 16, "only the CDB has a descriptor");
        let rest = &data[requests.consumed..];
        let count = buffer.len().min(*piece).min(rest.len());
        if count == 0 {
            break;
        }
        buffer[..count].copy_from_slice(&rest[..count]);
        requests.consumed += count;
        match decoder.advance(count) {
            Ok(event) => requests.events.extend(event),
            Err(violation) => {
                requests.violation = Some(violation);
                return requests;
            }
        }
    }
    requests.idle = decoder.is_idle();
    requests
}

/// The stream from a client to a helper, with the handshake.
pub fn request_stream(data: &[u8]) {
    let requests = decode_requests(data, &[usize::MAX]);
    for pieces in cuts(data) {
        assert_eq!(decode_requests(data, &pieces), requests, "cut into {pieces:?}");
    }

    let mut again = Vec::new();
    for (number, event) in requests.events.iter().enumerate() {
        match event {
            Event::Negotiated(features) => {
                assert_eq!(number, 0, "the handshake comes first, once");
                assert_eq!(features & !FEATURE_CLEANUP, 0);
                again.extend(wire::feature_word(*features));
            }
            Event::Request(request) => {
                assert_ne!(number, 0, "the handshake comes first");
                let command = request.command();
                assert_eq!(Cdb::new(*request.cdb().bytes()), Ok(*request.cdb()));
                assert_eq!(command.parameter_list().len(), request.cdb().parameter_list_length());
                crate::formats::assert_printable(&command.to_string());
                again.extend(request.cdb().bytes());
                again.extend(command.parameter_list());
            }
        }
    }
    assert!(data.starts_with(&again), "the accepted bytes are the stream's");
    match requests.violation {
        None => {
            assert_eq!(requests.consumed, data.len());
            assert_eq!(requests.idle, again.len() == data.len(), "the decoder is idle between two requests");
        }
        Some(RequestViolation::Features(word)) => assert_eq!(wire::feature_word(word)[..], data[..4]),
        Some(RequestViolation::Command(error)) => {
            assert_eq!(requests.consumed, again.len() + 16, "the decoder reads nothing after the bad CDB");
            let cdb = data[again.len()..requests.consumed].try_into().expect("16 bytes");
            let checked = Cdb::new(cdb).and_then(|cdb| cdb.check_transfer_length(MAX_TRANSFER));
            assert_eq!(checked, Err(error));
        }
        Some(other) => panic!("unknown violation: {other:?}"),
    }
}

/// The answer to `cdb` at the start of `data`, `None` if it is incomplete, and the number of its bytes.
fn decode_response(cdb: &Cdb, data: &[u8], pieces: &[usize]) -> (Result<Option<Completion>, ResponseViolation>, usize) {
    let mut decoder = ResponseDecoder::new(cdb);
    let mut consumed = 0;
    for piece in pieces.iter().cycle() {
        let buffer = decoder.wanted();
        assert!(!buffer.is_empty() && consumed + buffer.len() <= RESPONSE_HEADER_LENGTH + cdb.allocation_length());
        let count = buffer.len().min(*piece).min(data.len() - consumed);
        if count == 0 {
            break;
        }
        buffer[..count].copy_from_slice(&data[consumed..consumed + count]);
        consumed += count;
        match decoder.advance(count) {
            Ok(None) => {}
            answer => return (answer, consumed),
        }
    }
    (Ok(None), consumed)
}

/// 16 bytes of a CDB, and a helper's answer to it.
pub fn response_stream(data: &[u8]) {
    let Some((cdb, data)) = data.split_first_chunk() else { return };
    let Ok(cdb) = Cdb::new(*cdb) else { return };
    let (answer, consumed) = decode_response(&cdb, data, &[usize::MAX]);
    for pieces in cuts(data) {
        assert_eq!(decode_response(&cdb, data, &pieces), (answer.clone(), consumed), "cut into {pieces:?}");
    }

    let status = data.first_chunk().map(|bytes| i32::from_be_bytes(*bytes));
    match answer {
        Ok(None) => assert_eq!(consumed, data.len()),
        Ok(Some(completion)) => {
            let (header, returned) = wire::encode_response(&completion, cdb.allocation_length());
            assert_eq!(consumed, header.len() + returned.len());
            assert_eq!((&header[..8], returned), (&data[..8], &data[header.len()..consumed]));
            match &completion {
                Completion::Good(good) => assert!(good == returned && good.len() <= cdb.allocation_length()),
                // The sense data count only here.
                Completion::CheckCondition(_) => assert_eq!(header, data[..consumed]),
                Completion::Status(status) => assert!(![0x00, 0x02].contains(&status.byte())),
            }
            crate::formats::assert_printable(&completion.to_string());
        }
        Err(violation) => {
            assert_eq!(consumed, RESPONSE_HEADER_LENGTH, "the decoder reads nothing after the bad header");
            let is_status = status.is_some_and(|status| (0..=255).contains(&status));
            assert_eq!(matches!(violation, ResponseViolation::Status(_)), !is_status, "{violation}");
        }
    }
}

/// The length of the handshake.
const FEATURES: usize = 4;

/// 16 bytes of a CDB, and the stream from a helper to a client that sends it, with the handshake.
pub fn helper_stream(data: &[u8]) {
    static DEVICE: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("every system has it"));
    let Some((cdb, data)) = data.split_first_chunk() else { return };
    let Ok(cdb) = Cdb::new(*cdb) else { return };
    // A socket's buffer takes so many bytes without a reader.
    let data = &data[..data.len().min(32 * 1024)];

    let (client_end, mut helper_end) = UnixStream::pair().expect("a pair of sockets");
    helper_end.write_all(data).expect("the buffer is large enough");
    helper_end.shutdown(Shutdown::Write).expect("the socket is connected");
    // No limit is reached, because the helper's end is closed already.
    let client = HelperClient::over(client_end).with_config(Config::default().with_attempts(1));
    let list = vec![0; cdb.parameter_list_length()];
    let command = Command::new(cdb, &list).expect("it is as long as the CDB says");
    let result = client.execute(DEVICE.as_fd(), command);
    if cdb.check_transfer_length(MAX_TRANSFER).is_err() && data.len() >= FEATURES {
        // The client sends nothing that a helper refuses by closing the connection.
        assert_eq!(result.expect("the client answers itself"), Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
        return;
    }

    match expected(&cdb, data) {
        Expected::NotRun => assert!(!lost(result).may_have_run()),
        Expected::Unknown => {
            assert!(lost(result).may_have_run());
            assert!(!client.is_connected());
        }
        Expected::Answer(completion) => assert_eq!(result.expect("there is an answer"), completion),
    }
    // The client must not take excess bytes for the next answer.
    assert!(!lost(client.execute(DEVICE.as_fd(), command)).may_have_run());
    assert!(!client.is_connected());
}

fn lost(result: Result<Completion, Error>) -> Error {
    let error = result.expect_err("there is no answer");
    crate::formats::assert_printable(&error.to_string());
    error
}

enum Expected {
    NotRun,
    Unknown,
    Answer(Completion),
}

fn expected(cdb: &Cdb, data: &[u8]) -> Expected {
    let Some((offered, answer)) = data.split_first_chunk() else { return Expected::NotRun };
    if cdb.opcode() == Opcode::Cleanup && wire::decode_features(*offered) & FEATURE_CLEANUP == 0 {
        return Expected::Answer(Completion::check(SenseCode::INVALID_OPCODE));
    }
    match decode_response(cdb, answer, &[usize::MAX]) {
        (Ok(Some(completion)), _) => Expected::Answer(completion),
        _ => Expected::Unknown,
    }
}
