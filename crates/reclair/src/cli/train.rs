//! `reclair train CONFIG.toml`: a training run with a progress line; Ctrl-C ends it with a checkpoint.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use train::{
    checkpoint,
    config::TrainConfig,
    run::{Event, StepRecord},
};

/// Arguments of `train`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The run's configuration; see docs/training.md.
    config: PathBuf,
    /// Go on from the checkpoint, and fail where there is none; without this a run goes on if there is one.
    #[arg(long)]
    resume: bool,
    /// Print the log's JSON lines.
    #[arg(long)]
    json: bool,
    /// Where the networks run.
    #[arg(long, value_enum, default_value_t = super::On::Cpu)]
    device: super::On,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    super::set_threads(args.threads)?;
    let config = TrainConfig::read(&args.config)?;
    ensure!(
        !args.resume || checkpoint::exists(&config.out),
        "{}: holds no checkpoint to go on from; leave --resume out to start",
        config.out.display()
    );
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
    let mut progress = Progress::new(config.optimise.samples())?;
    let device = args.device.device()?;
    train::run::run(&config, &device, &stop, &mut |event| {
        if let (true, Event::Logged(line)) = (args.json, &event) {
            // Who reads along may leave; the run goes on.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        progress.show(&event);
    })?;
    let done = progress.step == config.optimise.steps as u64;
    progress.bar.finish_and_clear();
    if done {
        eprintln!("{}", config.out.join("report.html").display());
    } else {
        eprintln!("stopped with a checkpoint; run the same command to go on");
    }
    Ok(())
}

/// How often a line is printed where no terminal shows the bar.
const LINE: Duration = Duration::from_secs(30);

/// The progress line: a bar in a terminal, else a line now and then.
struct Progress {
    bar: ProgressBar,
    terminal: bool,
    batch: f64,
    step: u64,
    steps: u64,
    loss: Option<f64>,
    seconds: Option<f64>,
    waited: Option<f64>,
    said: Instant,
}

impl Progress {
    fn new(batch: usize) -> anyhow::Result<Self> {
        let bar = ProgressBar::new(0);
        let style =
            "{bar:30} {pos}/{len} steps  {elapsed_precise} elapsed, {eta_precise} to go  {msg}";
        bar.set_style(ProgressStyle::with_template(style)?);
        let terminal = std::io::stderr().is_terminal();
        if terminal {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Ok(Self {
            bar,
            terminal,
            batch: batch as f64,
            step: 0,
            steps: 0,
            loss: None,
            seconds: None,
            waited: None,
            said: Instant::now(),
        })
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Start {
                step,
                steps,
                parameters,
            } => {
                (self.step, self.steps) = (*step as u64, *steps as u64);
                self.bar.set_length(self.steps);
                self.bar.set_position(self.step);
                self.bar.reset_eta();
                self.say(&format!("training {parameters} values from step {step}"));
            }
            Event::Step(record) => self.count(record),
            Event::Validated { step, scores } => self.say(&format!(
                "step {step}: validation PSNR {:.2} dB (input {:.2}), SSIM {:.3}, detail {:.2}",
                scores.psnr, scores.lq_psnr, scores.ssim, scores.detail
            )),
            Event::Note(note) => self.say(&format!("note: {note}")),
            Event::Logged(_) => {}
        }
    }

    fn count(&mut self, record: &StepRecord) {
        self.step = record.step as u64;
        if record.loss.is_finite() {
            smooth(&mut self.loss, record.loss);
        }
        let seconds = smooth(&mut self.seconds, record.seconds);
        let waited = smooth(&mut self.waited, record.waited) / seconds;
        let mut text = format!("{:.1} images/s", self.batch / seconds);
        if let Some(loss) = self.loss {
            text += &format!("  loss {loss:.5}");
        }
        // Below that the workers keep up.
        if waited > 0.05 {
            text += &format!("  {:.0} % waiting for pictures", 100.0 * waited);
        }
        self.bar.set_position(self.step);
        if !self.terminal && self.said.elapsed() > LINE {
            self.said = Instant::now();
            let left = (self.steps - self.step) as f64 * seconds;
            let left = indicatif::HumanDuration(Duration::from_secs_f64(left));
            eprintln!("step {}/{}  {text}  {left} to go", self.step, self.steps);
        }
        self.bar.set_message(text);
    }

    fn say(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

/// A running mean over about twenty values.
fn smooth(mean: &mut Option<f64>, value: f64) -> f64 {
    let next = mean.map_or(value, |mean| 0.95 * mean + 0.05 * value);
    *mean = Some(next);
    next
}
