//! Ranks over MPI.
//!
//! Sums go to rank 0 and from there to all: an `MPI_Allreduce` may give its callers different roundings, and weights that
//! differ by one bit drift apart.

use mpi::{
    Threading,
    collective::SystemOperation,
    environment::Universe,
    initialize_with_threading,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Root},
};

use super::{Ranks, cores};
use crate::Error;

/// Values summed in one message; rank 0 needs as many a second time.
const PART: usize = 1 << 24;

/// The processes of one `mpirun`.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    threads: usize,
    // Dropped last: it ends MPI.
    _universe: Universe,
}

impl Mpi {
    /// Joins the processes this one was started with.
    ///
    /// # Errors
    /// An MPI that this process has joined already, or that lets no thread but its own exist.
    pub(super) fn join() -> Result<Self, Error> {
        let (universe, threading) = initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::Input("MPI is in use already; report this as a bug".into()))?;
        if threading < Threading::Funneled {
            return Err(Error::Input(
                "this MPI cannot be used by a program with threads; give another MPI".into(),
            ));
        }
        let world = universe.world();
        let machine = world.split_shared(world.rank());
        let mine = cores::mine();
        let mut all = vec![0; mine.len() * machine.size() as usize];
        machine.all_gather_into(&mine[..], &mut all[..]);
        let (all, _) = all.as_chunks();
        Ok(Self {
            threads: cores::threads(&mine, all),
            world,
            _universe: universe,
        })
    }

    /// Sums `values` to rank 0 and from there to all.
    fn add<T: mpi::traits::Equivalence + Copy + Default>(&self, values: &mut [T])
    where
        [T]: mpi::traits::Buffer + mpi::traits::BufferMut,
    {
        let root = self.world.process_at_rank(0);
        let mut sum = Vec::new();
        for part in values.chunks_mut(PART) {
            if self.rank() == 0 {
                sum.resize(part.len(), T::default());
                root.reduce_into_root(&*part, &mut sum[..], SystemOperation::sum());
                part.copy_from_slice(&sum);
            } else {
                root.reduce_into(&*part, SystemOperation::sum());
            }
            root.broadcast_into(part);
        }
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn count(&self) -> usize {
        self.world.size() as usize
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }

    fn sum(&self, values: &mut [f32]) {
        self.add(values);
    }

    fn sum_f64(&self, values: &mut [f64]) {
        self.add(values);
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        self.world.process_at_rank(0).broadcast_into(bytes);
    }

    fn wait(&self) {
        self.world.barrier();
    }

    fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Leaving MPI in order waits for all ranks, and those that know nothing of a panic here never come.
        if std::thread::panicking() {
            self.abort();
        }
    }
}
