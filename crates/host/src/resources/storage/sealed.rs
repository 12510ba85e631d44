//! How MinIO's admin interface wants a body that holds a password: encrypted with root's.
//!
//! Salt, the number of the way (PBKDF2 with AES-256-GCM), nonce, and one fragment of a stream whose last fragment is
//! marked in what is authenticated beside it; see `EncryptData` of madmin-go and the format of sio-go.

use envforge_api::secret::Secret;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    pbkdf2,
};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

const SALT: usize = 32;
const WAY: u8 = 0x02;
/// Of the twelve octets of a nonce the last four count fragments.
const RANDOM: usize = NONCE_LEN - 4;
const ROUNDS: NonZeroU32 = NonZeroU32::new(8192).expect("not zero");
const LAST: u8 = 0x80;

/// Encrypts at most 16 KiB.
#[must_use]
pub(super) fn seal(password: &Secret, text: &[u8]) -> Vec<u8> {
    let mut random = [0_u8; SALT + RANDOM];
    rand::fill(&mut random);
    seal_with(password, text, &random)
}

fn seal_with(password: &Secret, text: &[u8], random: &[u8; SALT + RANDOM]) -> Vec<u8> {
    let (salt, nonce) = random.split_at(SALT);
    let mut key = Zeroizing::new([0_u8; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, salt, password.expose().as_bytes(), key.as_mut_slice());
    let fragment = |number: u32| {
        let mut whole = [0_u8; NONCE_LEN];
        whole[..RANDOM].copy_from_slice(nonce);
        whole[RANDOM..].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(whole)
    };
    let mut sealed = [salt, &[WAY], nonce].concat();
    let mut body = text.to_vec();
    // Both fail only for keys and texts of impossible lengths.
    if let Ok(key) = UnboundKey::new(&AES_256_GCM, key.as_slice()).map(LessSafeKey::new)
        && let Ok(stream) = key.seal_in_place_separate_tag(fragment(0), Aad::empty(), &mut [])
        && let Ok(()) =
            key.seal_in_place_append_tag(fragment(1), Aad::from([&[LAST], stream.as_ref()].concat()), &mut body)
    {
        sealed.append(&mut body);
    }
    sealed
}
