//! CHAP (RFC 7143 12.1.3, RFC 1994): challenges, responses, and the secrets of both directions.

use std::fmt;

use md5::Md5;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// The shortest secret: 96 bits (RFC 7143 9.2.1).
pub const LEAST_SECRET: usize = 12;

const CHALLENGE_LENGTH: usize = 16;
const MAX_CHALLENGE: usize = 1024;

/// A hash algorithm of CHAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 5, which RFC 7143 requires.
    Md5,
    /// 7.
    Sha256,
}

impl Algorithm {
    /// The better one of those that a peer offers as a list of numbers.
    pub fn choose(offered: &str) -> Option<Self> {
        let offers = |number: &str| offered.split(',').any(|one| one.trim() == number);
        if offers("7") {
            Some(Self::Sha256)
        } else if offers("5") {
            Some(Self::Md5)
        } else {
            None
        }
    }

    /// The number, as in CHAP_A.
    pub const fn number(self) -> &'static str {
        match self {
            Self::Md5 => "5",
            Self::Sha256 => "7",
        }
    }

    fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        match self {
            Self::Md5 => {
                Md5::new().chain_update([id]).chain_update(&secret.0).chain_update(challenge).finalize().to_vec()
            }
            Self::Sha256 => {
                Sha256::new().chain_update([id]).chain_update(&secret.0).chain_update(challenge).finalize().to_vec()
            }
        }
    }
}

/// A CHAP secret. It is never displayed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// A secret that is too short.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a CHAP secret has at least {LEAST_SECRET} bytes (96 bits, RFC 7143 9.2.1)")]
pub struct ShortSecret;

impl Secret {
    /// # Errors
    ///
    /// [`ShortSecret`].
    pub fn new(secret: impl Into<Vec<u8>>) -> Result<Self, ShortSecret> {
        let secret = secret.into();
        if secret.len() < LEAST_SECRET { Err(ShortSecret) } else { Ok(Self(secret)) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A challenge that was sent.
#[derive(Clone, Debug)]
pub struct Challenge {
    algorithm: Algorithm,
    id: u8,
    bytes: [u8; CHALLENGE_LENGTH],
}

impl Challenge {
    /// A random challenge.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn random(algorithm: Algorithm) -> Result<Self, getrandom::Error> {
        let mut random = [0; CHALLENGE_LENGTH + 1];
        getrandom::fill(&mut random)?;
        let (id, bytes) = (random[0], random[1..].try_into().expect("the length of a challenge"));
        Ok(Self { algorithm, id, bytes })
    }

    /// CHAP_A, CHAP_I and CHAP_C.
    pub fn values(&self) -> [(&'static str, String); 3] {
        [
            ("CHAP_A", self.algorithm.number().to_owned()),
            ("CHAP_I", self.id.to_string()),
            ("CHAP_C", encode_binary(&self.bytes)),
        ]
    }

    /// Whether `response` (CHAP_R) shows that the peer knows `secret`. The comparison takes the same time wherever the
    /// bytes differ.
    pub fn is_answered_by(&self, response: &str, secret: &Secret) -> bool {
        let Some(response) = decode_binary(response) else { return false };
        self.algorithm.response(self.id, secret, &self.bytes).ct_eq(&response).into()
    }

    /// CHAP_R for the challenge of a peer (CHAP_I and CHAP_C). `None` when the challenge is malformed, or is this one sent
    /// back (RFC 7143 9.2.1: a reflected challenge).
    pub fn answer(&self, id: &str, challenge: &str, secret: &Secret) -> Option<String> {
        let id = id.parse().ok()?;
        let challenge = decode_binary(challenge).filter(|challenge| (1..=MAX_CHALLENGE).contains(&challenge.len()))?;
        if challenge == self.bytes {
            return None;
        }
        Some(encode_binary(&self.algorithm.response(id, secret, &challenge)))
    }
}

fn encode_binary(bytes: &[u8]) -> String {
    let mut text = "0x".to_owned();
    bytes.iter().for_each(|byte| text.push_str(&format!("{byte:02x}")));
    text
}

/// A binary value (RFC 7143 6.1): hexadecimal after `0x`, or base64 after `0b`.
fn decode_binary(text: &str) -> Option<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let nibbles: Option<Vec<u8>> =
            digits.chars().map(|digit| digit.to_digit(16).and_then(|nibble| nibble.try_into().ok())).collect();
        let nibbles = nibbles.filter(|nibbles| nibbles.len().is_multiple_of(2))?;
        return Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect());
    }
    let digits = text.strip_prefix("0b").or_else(|| text.strip_prefix("0B"))?.trim_end_matches('=');
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    #[test]
    fn a_known_response_of_each_algorithm() {
        // printf '\x01secret-secret\x02\x03' | md5sum, sha256sum
        let secret = secret("secret-secret");
        let md5 = Algorithm::Md5.response(1, &secret, &[2, 3]);
        let sha256 = Algorithm::Sha256.response(1, &secret, &[2, 3]);
        assert_eq!((md5.len(), sha256.len()), (16, 32));
        assert_eq!(encode_binary(&md5), MD5);
        assert_eq!(encode_binary(&sha256), SHA256);
    }

    #[test]
    fn only_the_right_secret_answers_a_challenge() {
        for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
            let (ours, theirs) = (Challenge::random(algorithm).unwrap(), Challenge::random(algorithm).unwrap());
            let [_, (_, id), (_, challenge)] = ours.values();
            let response = theirs.answer(&id, &challenge, &secret("secret-secret")).unwrap();
            assert!(ours.is_answered_by(&response, &secret("secret-secret")));
            assert!(!ours.is_answered_by(&response, &secret("secret-secreT")));
            assert!(!ours.is_answered_by("0x00", &secret("secret-secret")));
            assert!(!ours.is_answered_by("garbage", &secret("secret-secret")));
        }
    }

    #[test]
    fn a_reflected_challenge_is_not_answered() {
        let ours = Challenge::random(Algorithm::Md5).unwrap();
        let [_, (_, id), (_, challenge)] = ours.values();
        assert_eq!(ours.answer(&id, &challenge, &secret("secret-secret")), None);
    }

    #[test]
    fn the_better_algorithm_is_chosen() {
        assert_eq!(Algorithm::choose("5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6,7"), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::choose("6,8"), None);
    }

    #[test]
    fn short_secrets_are_refused() {
        assert_eq!(Secret::new("elevenbytes"), Err(ShortSecret));
    }

    #[test]
    fn binary_values_are_hexadecimal_or_base64() {
        assert_eq!(decode_binary("0x0aFF"), Some(vec![0x0a, 0xff]));
        assert_eq!(decode_binary("0bCv8="), Some(vec![0x0a, 0xff]));
        for malformed in ["", "0x1", "0xgg", "0b*", "12"] {
            assert_eq!(decode_binary(malformed), None, "{malformed:?}");
        }
    }
    const MD5: &str = "0x1c83bbb6c22f5706c5b1e42c4a28e2a6";
    const SHA256: &str = "0xd4a08d1562460dae08defbf04369251d96df37321b11ed35b77d442d95d335b5";
}
