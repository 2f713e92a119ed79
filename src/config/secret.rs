//! Values that no output may show.

use std::{fmt, fs, path::PathBuf};

use super::ConfigFault;

/// A value that neither `Debug` nor any error shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value` out of sight.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the bearer token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The configuration itself.
    Inline(Secret),
    /// A file, read at each dial, so that a rotated token is taken up; surrounding white space is
    /// dropped.
    File(PathBuf),
}

impl TokenSource {
    /// The token as of now.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is empty, or holds what no HTTP header can.
    pub fn read(&self) -> Result<Secret, ConfigFault> {
        let (key, place, text) = match self {
            Self::Inline(secret) => (
                "connection.token",
                "(hidden)".to_owned(),
                secret.reveal().to_owned(),
            ),
            Self::File(path) => {
                let place = path.display().to_string();
                let text = fs::read_to_string(path).map_err(|error| {
                    ConfigFault::new(
                        "connection.token_file",
                        format!("{place} ({error})"),
                        "a readable file that holds the token",
                    )
                })?;
                ("connection.token_file", place, text)
            }
        };
        let token = text.trim();
        if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(ConfigFault::new(
                key,
                place,
                "a token of visible ASCII characters",
            ));
        }
        Ok(Secret::new(token))
    }
}
