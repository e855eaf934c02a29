//! Handles: the numbers that stand for contexts, streams, events and so on.
//!
//! C takes them for pointers; here they are keys of a [`Table`], never followed and never given out
//! twice. A handle that is stale, of another kind or made up is therefore an error, not a crash.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use super::error::{Error, Result, code};
use super::ffi::{Handle, read, write};

/// The next number. Far from zero and from the three special streams, and 16 apart, so that a
/// number that was computed with is not likely to be another handle.
static NEXT: AtomicUsize = AtomicUsize::new(0x0e00_0000);

/// A number that was never given out before.
pub(super) fn fresh() -> Handle {
    NEXT.fetch_add(16, Ordering::Relaxed)
}

/// All live objects of one kind.
pub(super) struct Table<T> {
    kind: &'static str,
    objects: RwLock<HashMap<Handle, Arc<T>>>,
}

impl<T> Table<T> {
    /// `kind` is the word for errors, as `stream`.
    pub(super) fn new(kind: &'static str) -> Table<T> {
        Table {
            kind,
            objects: RwLock::default(),
        }
    }

    /// Adds the object that `make` makes of its handle.
    pub(super) fn insert(&self, make: impl FnOnce(Handle) -> T) -> (Handle, Arc<T>) {
        let handle = fresh();
        let object = Arc::new(make(handle));
        write(&self.objects).insert(handle, Arc::clone(&object));
        (handle, object)
    }

    /// The object of a handle.
    pub(super) fn get(&self, handle: Handle) -> Result<Arc<T>> {
        read(&self.objects)
            .get(&handle)
            .cloned()
            .ok_or_else(|| self.unknown(handle))
    }

    /// Takes an object out; its handle is invalid from now on.
    pub(super) fn remove(&self, handle: Handle) -> Result<Arc<T>> {
        write(&self.objects)
            .remove(&handle)
            .ok_or_else(|| self.unknown(handle))
    }

    /// Takes out all objects that `leaves` is true for.
    pub(super) fn extract(&self, leaves: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let mut objects = write(&self.objects);
        let (out, stay) = objects.drain().partition(|(_, object)| leaves(object));
        *objects = stay;
        HashMap::into_values(out).collect()
    }

    /// The first answer that an object gives.
    pub(super) fn find_map<R>(&self, answer: impl FnMut(&T) -> Option<R>) -> Option<R> {
        read(&self.objects)
            .values()
            .map(|object| &**object)
            .find_map(answer)
    }

    /// Whether there are no objects.
    pub(super) fn is_empty(&self) -> bool {
        read(&self.objects).is_empty()
    }

    fn unknown(&self, handle: Handle) -> Error {
        let kind = self.kind;
        let text = if handle == 0 {
            format!("the {kind} handle is null")
        } else {
            format!("{handle:#x} is no {kind} that is alive")
        };
        Error::new(code::INVALID_HANDLE, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_foreign_and_null_handles_are_errors() {
        let streams = Table::new("stream");
        let (a, object) = streams.insert(|handle| handle + 1);
        assert_eq!(*object, a + 1);
        assert_eq!(streams.get(a), Ok(object));
        assert!(streams.remove(a).is_ok());
        for handle in [a, 0, 7, usize::MAX] {
            let error = streams.get(handle).unwrap_err();
            assert_eq!(error.code, code::INVALID_HANDLE);
            assert!(error.text.contains("stream"), "{}", error.text);
        }
        assert_ne!(
            streams.insert(|_| 0).0,
            a,
            "a handle is never given out again"
        );
    }

    #[test]
    fn extract_takes_what_is_asked() {
        let table = Table::new("number");
        let handles: Vec<_> = (0..4).map(|i| table.insert(|_| i).0).collect();
        let mut odd: Vec<i32> = table.extract(|i| i % 2 == 1).iter().map(|i| **i).collect();
        odd.sort_unstable();
        assert_eq!(odd, [1, 3]);
        assert!(table.get(handles[0]).is_ok() && table.get(handles[1]).is_err());
        assert!(!table.is_empty());
    }
}
