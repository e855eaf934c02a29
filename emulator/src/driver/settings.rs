//! Settings of the emulator: from the environment at first use, then by [`configure`].

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::{Mutex, RwLock};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result, code};
use super::ffi::{lock, read, write};
use super::state;
use crate::device::Device;
use crate::exec::{Options, Schedule};

/// Changes to the settings of the emulator; `None` leaves a setting as it is.
///
/// Each begins as its environment variable says, else with the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The device to pose as, `sm_80` (default), `sm_86`, `sm_89` or `sm_90`. Can change only while no
    /// context exists. `CUDA_EMULATOR_ARCH`.
    pub arch: Option<String>,
    /// Bytes of device memory, 8 GiB by default. Can change only while no context exists.
    /// `CUDA_EMULATOR_MEMORY`.
    pub memory: Option<u64>,
    /// Host threads that a launch may use, all cores by default. `CUDA_EMULATOR_THREADS`.
    pub threads: Option<usize>,
    /// How the lanes of a warp take turns: `lowest` (default) or `adversarial:SEED`.
    /// `CUDA_EMULATOR_SCHEDULE`.
    pub schedule: Option<String>,
    /// Mistakes that are let pass, by the names that [`Forgiven`](crate::Forgiven) takes; none by default.
    /// `CUDA_EMULATOR_FORGIVE`.
    pub forgive: Option<String>,
    /// Warp instructions of one launch beyond which it fails with `CUDA_ERROR_LAUNCH_TIMEOUT`.
    pub max_instructions: Option<u64>,
    /// Print each launch's report to stderr; no by default. `CUDA_EMULATOR_REPORT`.
    pub report: Option<bool>,
    /// Faults come as on hardware: the launch succeeds, every later call in its context fails, and only the context's end
    /// makes the device usable again. No by default, so that one process can meet many faults. `CUDA_EMULATOR_STICKY`.
    pub sticky: Option<bool>,
    /// Judge races on global memory, in launches that the calling thread makes; yes by default. For tests whose input
    /// makes a kernel's threads meet.
    pub global_races: Option<bool>,
    /// A file to which lines are added that say which kernels modules have and which of them ran to their end; none by
    /// default. `CUDA_EMULATOR_COVERAGE`.
    pub coverage: Option<PathBuf>,
    /// Do not print faults to stderr: for tests that expect them. No by default.
    pub quiet: Option<bool>,
}

/// All settings, resolved.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) device: Device,
    pub(super) options: Options,
    pub(super) report: bool,
    pub(super) sticky: bool,
    pub(super) coverage: Option<PathBuf>,
    pub(super) quiet: bool,
}

/// `None` until first used.
static CONFIG: RwLock<Option<Config>> = RwLock::new(None);

thread_local! {
    /// Whether launches of this thread judge races on global memory.
    static GLOBAL_RACES: Cell<bool> = const { Cell::new(true) };
}

/// How a launch of the calling thread is run.
///
/// # Errors
/// As for [`config`].
pub(super) fn options() -> Result<Options> {
    Ok(Options {
        global_races: GLOBAL_RACES.get(),
        ..config()?.options
    })
}

/// The settings that hold now.
///
/// # Errors
/// An environment variable has a value that it cannot have.
pub(super) fn config() -> Result<Config> {
    if let Some(config) = &*read(&CONFIG) {
        return Ok(config.clone());
    }
    let config = from_environment(|name| std::env::var(name).ok())?;
    Ok(write(&CONFIG).get_or_insert(config).clone())
}

/// Changes settings.
///
/// # Errors
/// A value is unknown, or the device would change under a context that is alive.
pub(super) fn configure(settings: &Settings) -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let before = config()?;
    let after = before.clone().with(settings)?;
    if after.device != before.device {
        state::replace_device(&after.device)?;
    }
    *write(&CONFIG) = Some(after);
    GLOBAL_RACES.set(settings.global_races.unwrap_or(GLOBAL_RACES.get()));
    Ok(())
}

fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Config> {
    let number = |name: &str| {
        let parse = |text: String| {
            (text.parse::<u64>()).map_err(|_| Error::value(format!("{name}={text} is no number")))
        };
        variable(name).map(parse).transpose()
    };
    let flag = |name| variable(name).map(|text| !matches!(&*text, "" | "0"));
    let threads = number("CUDA_EMULATOR_THREADS")?;
    let settings = Settings {
        arch: variable("CUDA_EMULATOR_ARCH"),
        memory: number("CUDA_EMULATOR_MEMORY")?,
        threads: threads.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        schedule: variable("CUDA_EMULATOR_SCHEDULE"),
        report: flag("CUDA_EMULATOR_REPORT"),
        sticky: flag("CUDA_EMULATOR_STICKY"),
        forgive: variable("CUDA_EMULATOR_FORGIVE"),
        coverage: variable("CUDA_EMULATOR_COVERAGE").map(PathBuf::from),
        ..Settings::default()
    };
    let defaults = Config {
        device: Device::default(),
        options: Options::default(),
        report: false,
        sticky: false,
        coverage: None,
        quiet: false,
    };
    defaults.with(&settings)
}

impl Config {
    fn with(mut self, settings: &Settings) -> Result<Config> {
        if let Some(name) = &settings.arch {
            let device = Device::by_name(name).ok_or_else(|| {
                let known = Device::NAMES;
                Error::value(format!("no emulated device `{name}`; there are {known}"))
            })?;
            let total_memory = self.device.total_memory;
            self.device = Device {
                total_memory,
                ..device
            };
        }
        if let Some(bytes) = settings.memory {
            self.device.total_memory = bytes;
        }
        if let Some(threads) = settings.threads {
            if threads == 0 {
                return Err(Error::value("a launch needs at least one thread"));
            }
            self.options.threads = threads;
        }
        if let Some(text) = &settings.schedule {
            self.options.schedule = text.parse::<Schedule>().map_err(|error| {
                Error::new(code::INVALID_VALUE, format!("schedule `{text}`: {error}"))
            })?;
        }
        if let Some(names) = &settings.forgive {
            self.options.forgiven = names.parse().map_err(Error::value)?;
        }
        if let Some(limit) = settings.max_instructions {
            self.options.max_instructions = limit;
        }
        self.report = settings.report.unwrap_or(self.report);
        self.sticky = settings.sticky.unwrap_or(self.sticky);
        if let Some(path) = &settings.coverage {
            self.coverage = Some(path.clone());
        }
        self.quiet = settings.quiet.unwrap_or(self.quiet);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Config> {
        from_environment(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_are_read() {
        let config = environment(&[
            ("CUDA_EMULATOR_ARCH", "sm_90"),
            ("CUDA_EMULATOR_MEMORY", "1048576"),
            ("CUDA_EMULATOR_THREADS", "3"),
            ("CUDA_EMULATOR_SCHEDULE", "adversarial:7"),
            ("CUDA_EMULATOR_FORGIVE", "unwritten-shared"),
            ("CUDA_EMULATOR_REPORT", "1"),
            ("CUDA_EMULATOR_STICKY", "1"),
            ("CUDA_EMULATOR_COVERAGE", "kernels.txt"),
        ])
        .unwrap();
        assert_eq!(config.device.arch(), 90);
        assert_eq!(config.device.total_memory, 1 << 20);
        assert_eq!(config.options.threads, 3);
        assert_eq!(config.options.schedule, Schedule::Adversarial(7));
        assert!(config.options.forgiven.unwritten_shared);
        assert!(!config.options.forgiven.unfenced_mbarriers);
        assert!(config.report && config.sticky && !config.quiet);
        assert_eq!(config.coverage, Some("kernels.txt".into()));
    }

    #[test]
    fn nothing_set_is_the_baseline() {
        let config = environment(&[("CUDA_EMULATOR_REPORT", "0")]).unwrap();
        assert_eq!(config.device, Device::sm_80());
        assert!(!config.report && !config.sticky);
    }

    #[test]
    fn bad_values_are_named() {
        for (name, value, expected) in [
            (
                "CUDA_EMULATOR_ARCH",
                "sm_70",
                "no emulated device `sm_70`; there are sm_80",
            ),
            ("CUDA_EMULATOR_THREADS", "0", "at least one thread"),
            (
                "CUDA_EMULATOR_THREADS",
                "two",
                "CUDA_EMULATOR_THREADS=two is no number",
            ),
            (
                "CUDA_EMULATOR_MEMORY",
                "8G",
                "CUDA_EMULATOR_MEMORY=8G is no number",
            ),
            ("CUDA_EMULATOR_SCHEDULE", "fair", "schedule `fair`"),
            (
                "CUDA_EMULATOR_FORGIVE",
                "races",
                "`races` cannot be forgiven",
            ),
        ] {
            let error = environment(&[(name, value)]).unwrap_err();
            assert!(
                error.text.contains(expected),
                "{name}={value}: {}",
                error.text
            );
        }
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_was() {
        let config = environment(&[("CUDA_EMULATOR_THREADS", "3")]).unwrap();
        let changed = config
            .with(&Settings {
                quiet: Some(true),
                ..Settings::default()
            })
            .unwrap();
        assert!(changed.quiet);
        assert_eq!(changed.options.threads, 3);
    }
}
