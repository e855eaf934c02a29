//! What launches left behind: their reports and faults, until someone takes them.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::thread::{self, ThreadId};

use super::ffi::lock;
use super::settings::config;
use crate::gpu::Gpu;
use crate::report::Report;

/// How many of each are kept; the oldest are dropped first.
const KEPT: usize = 4096;

/// Whose entries to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those of all threads.
    Process,
    /// Those of launches that the calling thread made.
    Thread,
}

/// A bounded list of entries, each with the thread that made it.
struct Log<T>(Mutex<VecDeque<(ThreadId, T)>>);

impl<T> Log<T> {
    const fn new() -> Log<T> {
        Log(Mutex::new(VecDeque::new()))
    }

    fn push(&self, entry: T) {
        let mut entries = lock(&self.0);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back((thread::current().id(), entry));
    }

    fn take(&self, scope: Scope) -> Vec<T> {
        let mut entries = lock(&self.0);
        let own = thread::current().id();
        let (taken, left) =
            (entries.drain(..)).partition(|(thread, _)| scope == Scope::Process || *thread == own);
        *entries = left;
        let taken: VecDeque<(ThreadId, T)> = taken;
        taken.into_iter().map(|(_, entry)| entry).collect()
    }
}

static REPORTS: Log<Report> = Log::new();
static FAULTS: Log<String> = Log::new();

/// Keeps the report of a launch, and prints it with its cost if that is asked for.
pub(super) fn report(report: Report) {
    if config().is_ok_and(|config| config.report) {
        match Gpu::posed_as(&report.device) {
            Some(gpu) => eprintln!("{report}\n{}", report.cost(gpu)),
            None => eprintln!("{report}"),
        }
    }
    REPORTS.push(report);
}

/// Keeps the text of a fault, and prints it unless told not to.
pub(super) fn fault(text: String) {
    if !config().is_ok_and(|config| config.quiet) {
        eprintln!("{text}");
    }
    FAULTS.push(text);
}

/// The reports of launches, oldest first; they are taken out.
pub(super) fn take_reports(scope: Scope) -> Vec<Report> {
    REPORTS.take(scope)
}

/// The texts of faults, oldest first; they are taken out.
pub(super) fn take_faults(scope: Scope) -> Vec<String> {
    FAULTS.take(scope)
}

/// Prints a notice to stderr the first time that it comes up in this process.
pub(super) fn once(notice: &'static str) {
    static SAID: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    if lock(&SAID).get_or_insert_default().insert(notice) {
        eprintln!("cuda-emulator: {notice}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_takes_its_own() {
        let log = Log::new();
        log.push(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                log.push(2);
                assert_eq!(log.take(Scope::Thread), [2]);
                log.push(3);
            });
        });
        log.push(4);
        assert_eq!(log.take(Scope::Thread), [1, 4]);
        assert_eq!(log.take(Scope::Process), [3]);
        assert!(log.take(Scope::Process).is_empty());
    }

    #[test]
    fn the_oldest_entries_give_way() {
        let log = Log::new();
        (0..KEPT + 2).for_each(|i| log.push(i));
        let entries = log.take(Scope::Process);
        assert_eq!((entries.len(), entries[0]), (KEPT, 2));
    }
}
