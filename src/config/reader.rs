//! Takes values out of the layers, key by key.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use toml::Value;

use super::{ConfigFault, InstanceName, Origin, TlsVersion};

/// One key of the effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveValue {
    /// Dotted.
    pub key: &'static str,
    /// As it would stand in the file; secrets are masked, unset optional values are `(unset)`.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

pub(super) const UNSET: &str = "(unset)";
pub(super) const MASKED: &str = "***";

/// Takes values by key, and remembers what was asked for and what was wrong.
pub(super) struct Reader {
    values: BTreeMap<String, (Value, Origin)>,
    faults: Vec<ConfigFault>,
    effective: Vec<EffectiveValue>,
}

impl Reader {
    pub(super) fn new(values: BTreeMap<String, (Value, Origin)>, faults: Vec<ConfigFault>) -> Self {
        Self {
            values,
            faults,
            effective: Vec::new(),
        }
    }

    /// What is in force, and everything that was wrong. Whatever nobody asked for is misspelt, or of
    /// another version.
    pub(super) fn finish(mut self) -> (Vec<EffectiveValue>, Vec<ConfigFault>) {
        self.refuse_unknown();
        (self.effective, self.faults)
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<(Value, Origin)> {
        self.values.remove(key)
    }

    /// Where a value comes from that was not taken yet, if it is set.
    pub(super) fn origin(&self, key: &str) -> Option<Origin> {
        self.values.get(key).map(|(_, origin)| origin.clone())
    }

    pub(super) fn refuse(&mut self, fault: ConfigFault) {
        self.faults.push(fault);
    }

    pub(super) fn show(
        &mut self,
        key: &'static str,
        value: &(impl ToString + ?Sized),
        origin: Origin,
    ) {
        self.effective.push(EffectiveValue {
            key,
            value: value.to_string(),
            origin,
        });
    }

    pub(super) fn fault(&mut self, key: &str, shown: &str, origin: &Origin, expected: &str) {
        self.faults.push(ConfigFault::new(
            key,
            format!("{shown} (from {origin})"),
            expected,
        ));
    }

    /// A value that is read with `read`; the default where it is unset or wrong.
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        let Some((value, origin)) = self.take(key) else {
            let shown = default.as_ref().map_or_else(|| UNSET.to_owned(), &show);
            self.show(key, &shown, Origin::Default);
            return default;
        };
        match read(&value) {
            Some(read) => {
                self.show(key, &show(&read), origin);
                Some(read)
            }
            None => {
                self.fault(key, &value.to_string(), &origin, expected);
                default
            }
        }
    }

    /// A value that is written as text, as a number or as a truth.
    pub(super) fn parsed<T: Clone + FromStr + ShowValue>(
        &mut self,
        key: &'static str,
        default: T,
        expected: &str,
    ) -> T {
        let fallback = default.clone();
        self.value(
            key,
            Some(default),
            expected,
            |value| text_of(value)?.parse().ok(),
            T::show,
        )
        .unwrap_or(fallback)
    }

    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let read = |value: &Value| humantime::parse_duration(value.as_str()?).ok();
        let show =
            |value: &Duration| format!("{:?}", humantime::format_duration(*value).to_string());
        let expected = "a duration with its unit: \"500ms\", \"5s\", \"10min\"";
        self.value(key, Some(default), expected, read, show)
            .unwrap_or(default)
    }

    pub(super) fn text(&mut self, key: &'static str, default: Option<String>) -> Option<String> {
        let read = |value: &Value| value.as_str().map(str::to_owned);
        self.value(key, default, "text", read, |text| format!("{text:?}"))
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let read = |value: &Value| {
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(PathBuf::from)
        };
        self.value(key, None, "a path", read, PathBuf::show)
    }

    /// One that must be set.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        show: impl Fn(&T) -> String,
    ) -> Option<T>
    where
        T: FromStr,
    {
        let set = self.values.contains_key(key);
        let read = |value: &Value| text_of(value)?.parse().ok();
        let value = self.value(key, None, expected, read, show);
        if !set {
            self.fault(key, UNSET, &Origin::Default, expected);
        }
        value
    }

    fn refuse_unknown(&mut self) {
        let known: Vec<&'static str> = self
            .effective
            .iter()
            .map(|value| value.key)
            .chain([
                "connection.token",
                "federation.members",
                "connection.endpoints",
            ])
            .collect();
        for (key, (_, origin)) in std::mem::take(&mut self.values) {
            let near = known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(&key, known), known))
                .min()
                .filter(|(distance, _)| *distance <= 1 + key.len() / 4);
            let expected = match near {
                Some((_, near)) => format!("a known key; did you mean `{near}`?"),
                None => "a known key; `config.example.toml` lists them all".to_owned(),
            };
            // The value of a misspelt secret is a secret.
            self.fault(&key, MASKED, &origin, &expected);
        }
    }
}

/// How a value stands in the file.
pub(super) trait ShowValue {
    fn show(&self) -> String;
}

macro_rules! show {
    (bare: $($bare:ty),+; quoted: $($quoted:ty),+) => {
        $(impl ShowValue for $bare {
            fn show(&self) -> String {
                self.to_string()
            }
        })+
        $(impl ShowValue for $quoted {
            fn show(&self) -> String {
                format!("{:?}", self.to_string())
            }
        })+
    };
}

show! {
    bare: bool, u32, u64, usize;
    quoted: InstanceName, SocketAddr, TlsVersion
}

impl ShowValue for f64 {
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl ShowValue for PathBuf {
    fn show(&self) -> String {
        format!("{:?}", self.display().to_string())
    }
}

/// Numbers and truths may be written as such or, in the environment, as text.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// A list, or text with commas.
pub(super) fn list_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect(),
        Value::String(text) => {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            Some(parts.map(str::to_owned).collect())
        }
        _ => None,
    }
}
