//! Secrets at rest: AES-256-GCM under the cluster's key.
//!
//! The replicated state, its log, its snapshots and the maps that watchers get hold CHAP secrets only
//! sealed. The key is a file of 32 random bytes that is not part of any of them; whoever must use a
//! secret (the control plane, to seal; a gateway, to check a login) is given the file's path.
//!
//! # Format of a sealed secret
//!
//! | offset | size | field                                                        |
//! |--------|------|--------------------------------------------------------------|
//! | 0      | 1    | format, 1                                                    |
//! | 1      | 12   | nonce, drawn at random for each                              |
//! | 13     | n    | ciphertext                                                   |
//! | 13 + n | 16   | tag                                                          |
//!
//! The additional data of the cipher are the target's iSCSI name and the user, each with its length
//! before it: a sealed secret that is copied to another target or user does not open there. Secrets of discovery
//! sessions have [`DISCOVERY`] in place of the name.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use lunette_proto::map::Sealed;
use thiserror::Error;
use zeroize::Zeroizing;

/// In place of a target's name, for the secrets of discovery. No target can have it: it is no iSCSI name.
pub const DISCOVERY: &str = "discovery";

const FORMAT: u8 = 1;
const KEY_BYTES: usize = 32;
/// Group and others.
const MODE_OTHERS: u32 = 0o077;

/// Why a key file cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It cannot be read or made.
    #[error("cluster key {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("cluster key {} has mode {mode:03o}; it must be readable by its owner alone: chmod 600 it", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not a key.
    #[error("cluster key {} must be a file of {KEY_BYTES} bytes", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
    },
    /// The system gave no random bytes, or the cipher refused the key.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// A sealed secret that does not open: another key, another place, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnsealError {
    /// A format that this version does not know.
    #[error("a sealed secret of unknown format {0}")]
    Format(u8),
    /// It is not this key's, not this target's and user's, or not whole.
    #[error("a sealed secret does not open: another key, or damaged")]
    Damaged,
}

/// The cluster's key. Printing it prints nothing.
pub struct Sealer {
    key: RandomizedNonceKey,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// The key in the file at `path`.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        // Of the open file, not of the path: nobody can exchange it in between.
        let metadata = file.metadata().map_err(io)?;
        let mode = metadata.mode() & 0o777;
        if mode & MODE_OTHERS != 0 {
            return Err(KeyError::Mode { path: path.to_owned(), mode });
        }
        if !metadata.is_file() || metadata.len() != KEY_BYTES as u64 {
            return Err(KeyError::Length { path: path.to_owned() });
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        file.read_exact(&mut *bytes).map_err(io)?;
        Self::from_bytes(&bytes)
    }

    /// The key in the file at `path`, which is drawn at random if it does not exist. For the founding of
    /// a cluster only: with a new key, what the old one sealed is lost.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        if !fs::exists(path).map_err(io)? {
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| KeyError::Crypto)?;
            write_new(path, &*bytes).map_err(io)?;
        }
        Self::open(path)
    }

    /// The key of these bytes.
    pub(crate) fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| KeyError::Crypto)?;
        Ok(Self { key, bytes: Zeroizing::new(*bytes) })
    }

    /// The key itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }

    /// Writes the key to a file of mode 0600 that must not exist yet, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        write_new(path, &*self.bytes).map_err(|source| KeyError::Io { path: path.to_owned(), source })
    }

    /// Seals the secret of a user of a target.
    pub fn seal(&self, iqn: &str, user: &str, secret: &[u8]) -> Result<Sealed, KeyError> {
        let mut text = Zeroizing::new(secret.to_vec());
        // Room for the tag, so that growing leaves no copy of the secret behind.
        text.reserve_exact(AES_256_GCM.tag_len());
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context(iqn, user)), &mut *text)
            .map_err(|_| KeyError::Crypto)?;
        let mut sealed = vec![FORMAT];
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Ok(Sealed(sealed))
    }

    /// The secret of a user of a target.
    pub fn unseal(&self, iqn: &str, user: &str, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let (format, rest) = sealed.0.split_first().ok_or(UnsealError::Damaged)?;
        if *format != FORMAT {
            return Err(UnsealError::Format(*format));
        }
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(UnsealError::Damaged)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::from(nonce);
        let secret = self.key.open_in_place(nonce, Aad::from(context(iqn, user)), &mut text);
        let len = secret.map_err(|_| UnsealError::Damaged)?.len();
        text.truncate(len);
        Ok(text)
    }
}

/// What a secret is bound to. Lengths first, so that no two pairs of names run into one.
fn context(iqn: &str, user: &str) -> Vec<u8> {
    let mut context = Vec::with_capacity(16 + iqn.len() + user.len());
    for text in [iqn, user] {
        context.extend_from_slice(&(text.len() as u64).to_le_bytes());
        context.extend_from_slice(text.as_bytes());
    }
    context
}

/// Writes a file that must not exist yet, whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A link fails where a rename would replace a key that has appeared meanwhile.
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    linked?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const IQN: &str = "iqn.2026-11.io.lunette:a";

    fn sealer() -> (tempfile::TempDir, Sealer, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cluster.key");
        let sealer = Sealer::open_or_create(&path).expect("a key");
        (folder, sealer, path)
    }

    /// Guards secrets: they open where they were sealed and nowhere else, and not when damaged.
    #[test]
    fn bound_to_key_and_place() {
        let (_folder, sealer, path) = sealer();
        let (_other_folder, other, _) = self::sealer();
        let sealed = sealer.seal(IQN, "user", b"a secret of mine").expect("seals");
        let again = sealer.seal(IQN, "user", b"a secret of mine").expect("seals");
        assert_ne!(sealed, again, "a nonce for each");
        let reopened = Sealer::open(&path).expect("the same key");
        assert_eq!(reopened.unseal(IQN, "user", &sealed).expect("opens").as_slice(), b"a secret of mine");
        for (iqn, user) in [("iqn.2026-11.io.lunette:b", "user"), (IQN, "other"), (IQN, ""), ("", IQN)] {
            assert_eq!(sealer.unseal(iqn, user, &sealed), Err(UnsealError::Damaged));
        }
        assert_eq!(other.unseal(IQN, "user", &sealed), Err(UnsealError::Damaged));
        for len in 0..sealed.0.len() {
            assert_eq!(
                sealer.unseal(IQN, "user", &Sealed(sealed.0[..len].to_vec())),
                Err(UnsealError::Damaged)
            );
        }
        for byte in 1..sealed.0.len() {
            let mut damaged = sealed.clone();
            damaged.0[byte] ^= 1;
            assert_eq!(sealer.unseal(IQN, "user", &damaged), Err(UnsealError::Damaged));
        }
        let mut newer = sealed;
        newer.0[0] = 2;
        assert_eq!(sealer.unseal(IQN, "user", &newer), Err(UnsealError::Format(2)));
    }

    /// Guards the key file: made for its owner alone, never replaced, refused when others can read it.
    #[test]
    fn key_file() {
        let (_folder, _sealer, path) = sealer();
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let bytes = fs::read(&path).expect("readable");
        assert_eq!(bytes.len(), 32);
        Sealer::open_or_create(&path).expect("opens");
        assert_eq!(fs::read(&path).expect("readable"), bytes);
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("allowed");
            assert!(matches!(Sealer::open(&path), Err(KeyError::Mode { mode: found, .. }) if found == mode));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("allowed");
        fs::write(&path, &bytes[..31]).expect("writable");
        assert!(matches!(Sealer::open(&path), Err(KeyError::Length { .. })));
        fs::remove_file(&path).expect("there");
        assert!(matches!(Sealer::open(&path), Err(KeyError::Io { .. })));
        assert!(format!("{_sealer:?}").len() < 20);
    }
}
