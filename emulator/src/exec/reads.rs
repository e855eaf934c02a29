//! Reads of shared memory by the async proxy that have not ended: nobody may write there meanwhile.

use super::access::refused;
use super::context::{Context, Done};
use crate::ir::Pc;
use crate::race::{Accessor, AgentLane};

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Read {
    pc: Pc,
    /// Places in the cluster's shared memory: start and length.
    ranges: Vec<(usize, usize)>,
}

impl Context<'_> {
    /// Judges a read of ranges of shared memory, and marks them until it ends.
    pub(super) fn begin_read(
        &mut self,
        by: Accessor,
        ranges: Vec<(usize, usize)>,
        verb: &str,
    ) -> Done<Read> {
        for &(at, size) in &ranges {
            if let Err(refusal) = self.detector.issue_read(at, size, by) {
                return Err(refused(self, by, at, size, verb, refusal));
            }
        }
        for &(at, size) in &ranges {
            self.detector.mark_read(at, size, by);
        }
        Ok(Read { pc: by.pc, ranges })
    }

    /// A read has ended; other reads of the same bytes may go on.
    pub(super) fn end_read(&mut self, read: Read, lane: AgentLane) {
        for (at, size) in read.ranges {
            self.detector.complete_read(at, size, read.pc, lane);
        }
    }
}
