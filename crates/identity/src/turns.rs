//! Whose turn it is to have a password hashed.
//!
//! A hash takes a processor for some 20 ms, on purpose, and anybody may ask for one. So [`AT_ONCE`] run together, one of each source at most, and
//! sources take turns: one that asks a thousand times waits for itself. Its own attempts go one after the other, in the order in which they came,
//! so that as many as are allowed are tried and those after them are refused. What waits is bounded for each source and in all; when all
//! places are taken, the source that has most of them gives one up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::source::Source;

/// Hashes at once, each with 19 MiB of memory that is kept for the next one.
pub(crate) const AT_ONCE: usize = 2;
/// How many of one source may wait: some five seconds' worth.
const OF_SOURCE: usize = 256;
/// How many may wait in all. Each is a request of a few kilobytes.
const OF_ALL: usize = 2048;

/// The queue. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Mutex<Queue>>);

struct Queue {
    /// Sources with a hash that runs.
    running: HashSet<Source>,
    waiting: HashMap<Source, VecDeque<oneshot::Sender<Turn>>>,
    /// Who waits, in the order of their turns.
    order: VecDeque<Source>,
    total: usize,
    of_source: usize,
    of_all: usize,
}

/// The right to hash; given back when it is dropped.
pub(crate) struct Turn {
    turns: Turns,
    source: Source,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.queue().running.remove(&self.source);
        self.turns.go_on();
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::bounded(OF_SOURCE, OF_ALL)
    }
}

impl Turns {
    fn bounded(of_source: usize, of_all: usize) -> Self {
        Self(Arc::new(Mutex::new(Queue {
            running: HashSet::new(),
            waiting: HashMap::new(),
            order: VecDeque::new(),
            total: 0,
            of_source,
            of_all,
        })))
    }

    /// Waits for a turn of `source`.
    ///
    /// # Errors
    /// [`Error::Busy`] when more wait than is sensible.
    pub(crate) async fn turn(&self, source: &Source) -> Result<Turn> {
        let waiting = self.queue().join(source)?;
        self.go_on();
        waiting.await.map_err(|_| Error::Busy)
    }

    /// Gives turns to those who can have one now.
    fn go_on(&self) {
        loop {
            let next = self.queue().pick();
            let Some((source, waiting)) = next else { return };
            let turn = Turn {
                turns: self.clone(),
                source,
            };
            // Who has gone away gives the turn back, and not under the lock: that takes it again.
            drop(waiting.send(turn));
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn join(&mut self, source: &Source) -> Result<oneshot::Receiver<Turn>> {
        if self.of(source) >= self.of_source || self.total >= self.of_all {
            self.forget_gone();
        }
        let own = self.of(source);
        if own >= self.of_source || (self.total >= self.of_all && !self.displace(own)) {
            return Err(Error::Busy);
        }
        let (sender, receiver) = oneshot::channel();
        let queue = self.waiting.entry(source.clone()).or_default();
        if queue.is_empty() {
            self.order.push_back(source.clone());
        }
        queue.push_back(sender);
        self.total += 1;
        Ok(receiver)
    }

    fn of(&self, source: &Source) -> usize {
        self.waiting.get(source).map_or(0, VecDeque::len)
    }

    /// The next whose turn it is, if there is room for one; it counts as running.
    fn pick(&mut self) -> Option<(Source, oneshot::Sender<Turn>)> {
        while self.running.len() < AT_ONCE {
            let at = self
                .order
                .iter()
                .position(|source| !self.running.contains(source))?;
            let source = self.order.remove(at)?;
            let queue = self.waiting.get_mut(&source)?;
            let first = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&source);
            } else {
                self.order.push_back(source.clone());
            }
            self.total -= usize::from(first.is_some());
            if let Some(first) = first.filter(|first| !first.is_closed()) {
                self.running.insert(source.clone());
                return Some((source, first));
            }
        }
        None
    }

    /// Takes a place from the source that has most of them, if that leaves it as many as `own` has with one more.
    fn displace(&mut self, own: usize) -> bool {
        let most = self.waiting.iter().max_by_key(|(_, queue)| queue.len());
        let Some(source) = most
            .filter(|(_, queue)| queue.len() > own + 1)
            .map(|(source, _)| source.clone())
        else {
            return false;
        };
        if let Some(queue) = self.waiting.get_mut(&source) {
            queue.pop_back();
            self.total -= 1;
        }
        true
    }

    /// Forgets those who wait no more.
    fn forget_gone(&mut self) {
        for queue in self.waiting.values_mut() {
            queue.retain(|waiting| !waiting.is_closed());
        }
        self.waiting.retain(|_, queue| !queue.is_empty());
        let waiting = &self.waiting;
        self.order.retain(|source| waiting.contains_key(source));
        self.total = waiting.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn source(n: u8) -> Source {
        Source::of([10, 0, 0, n].into())
    }

    /// What has ended of those that wait, polled in order.
    fn ready<F: Future<Output = Result<Turn>> + Unpin>(waiting: &mut Vec<F>) -> Vec<Result<Turn>> {
        let mut ended = Vec::new();
        waiting.retain_mut(|one| match one.now_or_never() {
            Some(result) => {
                ended.push(result);
                false
            }
            None => true,
        });
        ended
    }

    /// 150 attempts at unknown names made a good login fail.
    #[tokio::test]
    async fn a_flood_of_one_source_is_in_nobody_elses_way() {
        let turns = Turns::default();
        let (bad, good) = (source(1), source(2));
        let mut flood: Vec<_> = (0..200).map(|_| Box::pin(turns.turn(&bad))).collect();
        let mut running = ready(&mut flood);
        assert_eq!(running.len(), 1, "one of each source");
        let first = turns
            .turn(&good)
            .now_or_never()
            .expect("at once")
            .expect("a turn");
        let mut second = vec![Box::pin(turns.turn(&good))];
        assert!(ready(&mut second).is_empty());
        // The flood's turn comes and goes; then it is the good one's.
        drop(running.pop());
        drop(first);
        assert_eq!((ready(&mut second).len(), ready(&mut flood).len()), (1, 1));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_places_are_shared_out() {
        let turns = Turns::bounded(4, 6);
        let (one, two) = (source(1), source(2));
        let _running = [turns.turn(&source(8)).await, turns.turn(&source(9)).await];
        let mut first: Vec<_> = (0..6).map(|_| Box::pin(turns.turn(&one))).collect();
        let refused = ready(&mut first);
        assert_eq!((refused.len(), first.len()), (2, 4), "so many of one source");
        let mut second: Vec<_> = (0..3).map(|_| Box::pin(turns.turn(&two))).collect();
        assert!(ready(&mut second).is_empty(), "they took a place");
        assert_eq!(ready(&mut first).len(), 1, "from whoever had most");
        let mut third = vec![Box::pin(turns.turn(&two))];
        assert!(matches!(ready(&mut third).as_slice(), [Err(Error::Busy)]));
        // Who goes away leaves a place.
        drop(first);
        let mut fourth = vec![Box::pin(turns.turn(&two))];
        assert!(ready(&mut fourth).is_empty());
    }

    #[tokio::test]
    async fn a_turn_of_somebody_who_is_gone_goes_to_the_next() {
        let turns = Turns::default();
        let one = source(1);
        let running = turns.turn(&one).await.expect("a turn");
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(turns.turn(&one))).collect();
        assert!(ready(&mut waiting).is_empty());
        let mut last = waiting.split_off(99);
        drop(waiting);
        drop(running);
        assert_eq!(ready(&mut last).len(), 1);
        assert!(turns.queue().waiting.is_empty());
    }
}
