//! Which samples of each step a rank takes.

use super::Ranks;
use crate::Error;

/// The samples of one rank: of every `batch` in the run's order, the same `count` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    batch: usize,
    first: usize,
    count: usize,
}

impl Share {
    /// This rank's part of a step of `batch` samples; parts differ by one sample at most.
    ///
    /// # Errors
    /// More ranks than samples.
    pub fn new(batch: usize, ranks: &dyn Ranks) -> Result<Self, Error> {
        let (rank, of) = (ranks.rank(), ranks.count());
        if batch < of {
            return Err(Error::Input(format!(
                "optimise.batch = {batch} samples cannot be shared by {of} ranks; give a batch of {of} or more, or mpirun -n {batch}"
            )));
        }
        let first = batch * rank / of;
        Ok(Self {
            batch,
            first,
            count: batch * (rank + 1) / of - first,
        })
    }

    /// Samples in each step.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What its mean counts in the step's.
    pub fn weight(&self) -> f64 {
        self.count as f64 / self.batch as f64
    }

    /// The number in the run of the rank's sample `i`, counted through all steps.
    pub fn sample(&self, i: usize) -> usize {
        i / self.count * self.batch + self.first + i % self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rank(usize, usize);

    impl Ranks for Rank {
        fn rank(&self) -> usize {
            self.0
        }
        fn count(&self) -> usize {
            self.1
        }
        fn threads(&self) -> Option<usize> {
            None
        }
        fn sum(&self, _values: &mut [f32]) {}
        fn sum_f64(&self, _values: &mut [f64]) {}
        fn broadcast(&self, _bytes: &mut [u8]) {}
        fn wait(&self) {}
        fn abort(&self) -> ! {
            unreachable!()
        }
    }

    #[test]
    fn the_ranks_take_each_sample_of_each_step_once() {
        for (batch, of) in [(4, 1), (4, 2), (4, 4), (7, 3), (16, 5)] {
            for step in 0..3 {
                let mut taken = Vec::new();
                for rank in 0..of {
                    let share = Share::new(batch, &Rank(rank, of)).expect("fits");
                    let mine = step * share.count()..(step + 1) * share.count();
                    taken.extend(mine.map(|i| share.sample(i)));
                }
                let wanted: Vec<usize> = (step * batch..(step + 1) * batch).collect();
                assert_eq!(taken, wanted, "{of} ranks");
            }
        }
        assert!(Share::new(2, &Rank(0, 3)).is_err());
    }
}
