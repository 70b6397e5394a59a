//! The processes that train one run together, each on its part of every step's batch.
//!
//! ```text
//! loss = sum_r (b_r / b) loss_r        gradient = sum_r (b_r / b) gradient_r
//! ```
//!
//! with `b_r` of the step's `b` samples on rank `r`. Every rank holds the same weights, optimiser state and average, gets
//! the same sum and so takes the same step; rank 0 alone writes. What a sample draws depends on its number in the run and not on
//! where it is computed, so that the number of ranks changes a run by f32 rounding only.
//!
//! [`Alone`] is one process; [`join`] finds the others that `mpirun` started.

#[cfg(any(feature = "mpi", test))]
mod cores;
#[cfg(feature = "mpi")]
mod mpi;
mod share;
mod sum;

pub use share::Share;
pub(crate) use sum::total;

use crate::Error;

/// The processes of a run. Every rank makes the same calls in the same order; each waits for the others.
pub trait Ranks {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Threads that leave the other ranks of this machine theirs, where there are others.
    fn threads(&self) -> Option<usize>;

    /// Adds up each value over the ranks; all get the same bits.
    fn sum(&self, values: &mut [f32]);

    /// The same of few values in double precision.
    fn sum_f64(&self, values: &mut [f64]);

    /// Gives all ranks the bytes of rank 0.
    fn broadcast(&self, bytes: &mut [u8]);

    /// Returns when all ranks have come here.
    fn wait(&self);

    /// Ends this process and all others at once.
    fn abort(&self) -> !;
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn threads(&self) -> Option<usize> {
        None
    }

    fn sum(&self, _values: &mut [f32]) {}

    fn sum_f64(&self, _values: &mut [f64]) {}

    fn broadcast(&self, _bytes: &mut [u8]) {}

    fn wait(&self) {}

    fn abort(&self) -> ! {
        std::process::exit(1)
    }
}

/// What the launchers of MPI implementations tell the processes they start: the number of ranks or this one's.
const LAUNCHED: [&str; 4] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"];

/// The ranks that this process was started with by `mpirun` or the like; alone without one.
///
/// # Errors
/// A program built without MPI that was started as one of several.
pub fn join() -> Result<Box<dyn Ranks>, Error> {
    let said = |name| std::env::var(name).ok();
    if LAUNCHED.into_iter().find_map(said).is_none() {
        return Ok(Box::new(Alone));
    }
    #[cfg(feature = "mpi")]
    return Ok(Box::new(mpi::Mpi::join()?));
    #[cfg(not(feature = "mpi"))]
    match LAUNCHED[..2].iter().copied().find_map(said).as_deref() {
        Some("1") => Ok(Box::new(Alone)),
        _ => Err(Error::Input(
            "this program was built without MPI and cannot train as one of several processes; build it with `--features mpi`, or start it without mpirun"
                .into(),
        )),
    }
}

/// Whether `mine` holds on any rank.
pub(crate) fn any(ranks: &dyn Ranks, mine: bool) -> bool {
    let mut sum = [f64::from(u8::from(mine))];
    ranks.sum_f64(&mut sum);
    sum[0] > 0.0
}

/// Refuses to go on where this rank has read something else than rank 0.
pub(crate) fn agree(ranks: &dyn Ranks, digest: impl FnOnce() -> [u8; 32]) -> Result<(), Error> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let digest = digest();
    let mut first = digest;
    ranks.broadcast(&mut first);
    if first == digest {
        return Ok(());
    }
    Err(Error::Input(
        "configuration, pictures or checkpoint are not those that rank 0 sees; all ranks need the same files, in a folder that they share"
            .into(),
    ))
}
