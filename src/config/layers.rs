//! Where values come from: a TOML file, then the environment, then flags. The last one that names
//! a key decides, and every value remembers its origin.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use toml::{Table, Value};

use super::ConfigFault;

/// Environment variables with this prefix are ours: `GOVERNANCE_STREAM__SECTION__KEY`.
pub(super) const ENV_PREFIX: &str = "GOVERNANCE_STREAM__";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// A `--set` flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// Values by dotted key, each with its origin.
#[derive(Debug, Default)]
pub struct Layers {
    values: BTreeMap<String, (Value, Origin)>,
    faults: Vec<ConfigFault>,
}

impl Layers {
    /// Nothing set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays a TOML file on top. A file that cannot be read or parsed is a fault like any other.
    #[must_use]
    pub fn file(mut self, path: PathBuf) -> Self {
        let table = std::fs::read_to_string(&path)
            .map_err(|error| (error.to_string(), "a readable file"))
            .and_then(|text| {
                text.parse::<Table>()
                    .map_err(|error| (error.to_string(), "TOML"))
            });
        match table {
            Ok(table) => self.flatten("", table, &Origin::File(path)),
            Err((error, expected)) => {
                // A TOML error shows the line it is in, which may hold a secret: only its
                // message is told.
                let error = error.lines().last().unwrap_or_default().to_owned();
                let shown = format!("{} ({error})", path.display());
                self.faults
                    .push(ConfigFault::new("--config", shown, expected));
            }
        }
        self
    }

    /// Lays TOML text on top, as if it were the file at `path`.
    ///
    /// # Errors
    ///
    /// When it is no TOML.
    pub fn text(mut self, text: &str, path: PathBuf) -> Result<Self, toml::de::Error> {
        self.flatten("", text.parse::<Table>()?, &Origin::File(path));
        Ok(self)
    }

    /// Lays environment variables on top; those of other programs are not looked at.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            if let Some(key) = name.strip_prefix(ENV_PREFIX) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                self.values
                    .insert(key, (Value::String(value), Origin::Environment(name)));
            }
        }
        self
    }

    /// Lays `KEY=VALUE` flags on top.
    #[must_use]
    pub fn flags<'a>(mut self, flags: impl IntoIterator<Item = &'a str>) -> Self {
        for flag in flags {
            match flag.split_once('=') {
                Some((key, value)) => {
                    let value = Value::String(value.trim().to_owned());
                    self.values
                        .insert(key.trim().to_owned(), (value, Origin::Flag));
                }
                None => {
                    // What stands there may be a secret that lost its key.
                    self.faults
                        .push(ConfigFault::new("--set", "(no =)", "KEY=VALUE"));
                }
            }
        }
        self
    }

    fn flatten(&mut self, prefix: &str, table: Table, origin: &Origin) {
        for (key, value) in table {
            let key = if prefix.is_empty() {
                key
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                Value::Table(table) => self.flatten(&key, table, origin),
                value => {
                    self.values.insert(key, (value, origin.clone()));
                }
            }
        }
    }

    pub(super) fn into_parts(self) -> (BTreeMap<String, (Value, Origin)>, Vec<ConfigFault>) {
        (self.values, self.faults)
    }
}
