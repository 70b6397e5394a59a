//! A run's log, read back: numbers by name over steps.

use std::collections::BTreeMap;

use serde_json::Value;

/// Kinds of lines that are words.
const NOTES: [&str; 4] = ["note", "passed_over", "skipped", "stopped"];

/// The log's numbers and notes.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// `(step, value)` by name, in order.
    numbers: BTreeMap<String, Vec<(f64, f64)>>,
    /// Step, kind and words.
    pub(super) notes: Vec<(u64, String, String)>,
}

impl Log {
    /// Reads the lines of `text`; what is no whole line yet is left out.
    pub(super) fn read(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            let Ok(Value::Object(line)) = serde_json::from_str(line) else {
                continue;
            };
            let Some(step) = line.get("step").and_then(Value::as_u64) else {
                continue;
            };
            for (name, value) in &line {
                if let Some(value) = value.as_f64() {
                    let points = log.numbers.entry(name.clone()).or_default();
                    points.push((step as f64, value));
                } else if let (true, Some(why)) = (NOTES.contains(&name.as_str()), value.as_str()) {
                    log.notes.push((step, name.clone(), why.to_owned()));
                }
            }
        }
        log
    }

    pub(super) fn points(&self, name: &str) -> Vec<(f64, f64)> {
        self.numbers.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn last(&self, name: &str) -> Option<f64> {
        Some(self.numbers.get(name)?.last()?.1)
    }

    pub(super) fn last_step(&self) -> u64 {
        self.last("step").map_or(0, |step| step as u64)
    }

    pub(super) fn sum(&self, name: &str) -> f64 {
        self.points(name).iter().map(|(_, value)| value).sum()
    }

    /// Seconds in all steps; none where there is no step.
    pub(super) fn seconds(&self) -> Option<f64> {
        Some(self.sum("seconds")).filter(|seconds| *seconds > 0.0)
    }

    /// A running mean over about a fiftieth of the run.
    pub(super) fn smoothed(&self, name: &str) -> Vec<(f64, f64)> {
        let points = self.points(name);
        let keep = 1.0 - 1.0 / (points.len() as f64 / 50.0).max(1.0);
        let (mut mean, mut weight) = (0.0, 0.0);
        let next = |(step, value): (f64, f64)| {
            mean = keep * mean + (1.0 - keep) * value;
            weight = keep * weight + (1.0 - keep);
            (step, mean / weight)
        };
        points.into_iter().map(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_notes_and_torn_lines() {
        let log = Log::read(
            "{\"step\":1,\"loss\":2.0,\"seconds\":0.5}\n{\"step\":2,\"loss\":null,\"seconds\":0.25}\n\
             {\"step\":2,\"skipped\":\"loss NaN\"}\n{\"step\":3,\"loss\":1.0,\"se",
        );
        assert_eq!(log.points("loss"), [(1.0, 2.0)]);
        assert_eq!(log.seconds(), Some(0.75));
        assert_eq!(log.last_step(), 2);
        assert_eq!(log.notes, [(2, "skipped".into(), "loss NaN".into())]);
    }

    #[test]
    fn smoothing_keeps_a_constant_and_follows_a_jump_slowly() {
        let lines = |value: &dyn Fn(usize) -> f64| {
            let line = |i| format!("{{\"step\":{i},\"loss\":{}}}\n", value(i));
            Log::read(&(0..500).map(line).collect::<String>())
        };
        let constant = lines(&|_| 3.0).smoothed("loss");
        assert!(constant.iter().all(|(_, loss)| (loss - 3.0).abs() < 1e-9));
        let jump = lines(&|i| if i < 250 { 0.0 } else { 1.0 }).smoothed("loss");
        assert!((jump[250].1 - 0.1).abs() < 1e-9, "a tenth at once");
        assert!(jump[499].1 > 0.99);
    }
}
