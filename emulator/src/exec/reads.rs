//! Reads of shared memory by the async proxy that have not ended: nobody may write there meanwhile.

use super::context::{Context, Done, refused};
use crate::race::{Accessor, ReadMark};

/// Names a read that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadId(u64);

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Read {
    id: ReadId,
    mark: ReadMark,
    /// Places in the cluster's shared memory: start and length.
    ranges: Vec<(usize, usize)>,
}

/// The reads that are under way.
#[derive(Debug, Default)]
pub(super) struct Reads {
    list: Vec<Read>,
    last: u64,
}

impl Reads {
    pub(super) fn clear(&mut self) {
        self.list.clear();
    }
}

impl Context<'_> {
    /// Judges a read of ranges of shared memory, and marks them until it ends.
    pub(super) fn begin_read(
        &mut self,
        by: Accessor,
        ranges: &[(usize, usize)],
        verb: &str,
    ) -> Done<ReadId> {
        let mut mark = None;
        for &(at, size) in ranges {
            if let Err(refusal) = self.detector.issue_read(at, size, by) {
                return Err(refused(self, by, at, size, verb, refusal));
            }
            mark = Some(self.detector.mark_read(at, size, by));
        }
        self.reads.last += 1;
        let id = ReadId(self.reads.last);
        if let Some(mark) = mark {
            self.reads.list.push(Read {
                id,
                mark,
                ranges: ranges.to_vec(),
            });
        }
        Ok(id)
    }

    /// A read has ended; other reads of the same bytes go on.
    pub(super) fn end_read(&mut self, id: ReadId) {
        let Some(at) = self.reads.list.iter().position(|read| read.id == id) else {
            return;
        };
        let ended = self.reads.list.remove(at);
        for &(at, size) in &ended.ranges {
            self.detector.complete_read(at, size, ended.mark);
        }
        for other in &self.reads.list {
            for &(at, size) in &other.ranges {
                let meets =
                    |&(start, length): &(usize, usize)| at < start + length && start < at + size;
                if ended.ranges.iter().any(meets) {
                    self.detector.set_read(at, size, other.mark);
                }
            }
        }
    }
}
