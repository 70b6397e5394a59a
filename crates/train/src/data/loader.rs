//! Samples in order, made ahead by worker threads, at most so many at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
};

use super::{Photos, Sample};
use crate::{Error, ranks::Share};

/// Samples in order, made ahead by worker threads.
#[derive(Debug)]
pub struct Loader {
    desk: Arc<Desk>,
    workers: Vec<JoinHandle<()>>,
}

/// What workers and reader share.
#[derive(Debug)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    share: Share,
    ahead: usize,
}

#[derive(Debug)]
struct State {
    /// The next sample a worker makes, of the rank's share.
    next: usize,
    /// The next sample the reader takes; workers stay less than `ahead` before it.
    wanted: usize,
    ready: BTreeMap<usize, Result<Sample, Error>>,
    ended: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .expect("nothing panics while it is held")
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

impl Loader {
    /// Starts `workers` threads at sample `first` of the rank's share, which hold at most `ahead` samples.
    pub fn start(
        photos: Arc<Photos>,
        share: Share,
        first: usize,
        ahead: usize,
        workers: usize,
    ) -> Self {
        let desk = Arc::new(Desk {
            state: Mutex::new(State {
                next: first,
                wanted: first,
                ready: BTreeMap::new(),
                ended: false,
            }),
            changed: Condvar::new(),
            share,
            ahead: ahead.max(1),
        });
        let worker = |_| {
            let (photos, desk) = (photos.clone(), desk.clone());
            std::thread::spawn(move || work(&photos, &desk))
        };
        Self {
            workers: (0..workers.max(1)).map(worker).collect(),
            desk,
        }
    }

    /// The next `n` samples.
    ///
    /// # Errors
    /// A photograph that cannot be read.
    pub fn batch(&mut self, n: usize) -> Result<Vec<Sample>, Error> {
        (0..n).map(|_| self.one()).collect()
    }

    fn one(&mut self) -> Result<Sample, Error> {
        let mut state = self.desk.lock();
        let wanted = state.wanted;
        state.wanted += 1;
        self.desk.changed.notify_all();
        loop {
            if let Some(sample) = state.ready.remove(&wanted) {
                return sample;
            }
            if state.ended {
                return Err(Error::Input(
                    "a data worker stopped; report this as a bug".into(),
                ));
            }
            state = self.desk.wait(state);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.desk.end();
        for worker in self.workers.drain(..) {
            // What a worker panicked with has been printed already.
            let _ = worker.join();
        }
    }
}

/// Ends the reader's wait if a worker panics.
struct Alarm<'a>(&'a Desk);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

fn work(photos: &Photos, desk: &Desk) {
    let _alarm = Alarm(desk);
    loop {
        let mut state = desk.lock();
        while !state.ended && state.next >= state.wanted + desk.ahead {
            state = desk.wait(state);
        }
        if state.ended {
            return;
        }
        let index = state.next;
        state.next += 1;
        drop(state);
        let sample = photos.sample(desk.share.sample(index));
        desk.lock().ready.insert(index, sample);
        desk.changed.notify_all();
    }
}
