//! `reclair train CONFIG.toml`: a training run with a progress line; Ctrl-C ends it with a checkpoint. Started by `mpirun`,
//! it trains together with the other ranks, of which the first talks.

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
    Error, checkpoint,
    config::TrainConfig,
    plan::{Plan, plan},
    ranks::{Ranks, join},
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
    /// Train nothing: try a few steps without the model's weights and print parameters, time and peak memory.
    #[arg(long)]
    plan: bool,
    /// Print the log's JSON lines, or the plan as one.
    #[arg(long)]
    json: bool,
    /// Where the networks run.
    #[arg(long, value_enum, default_value_t = super::On::Cpu)]
    device: super::On,
    /// Threads; all cores by default, shared with the other ranks of this machine.
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let ranks = join()?;
    let result = train(args, ranks.as_ref());
    if let (true, Err(why)) = (ranks.count() > 1, &result) {
        // All ranks know of a run that went wrong, and the first one says it. Of whatever else, only this one knows.
        if ranks.rank() > 0 && matches!(why.downcast_ref(), Some(Error::Diverged(_))) {
            ranks.wait();
        }
        eprintln!("error: rank {}: {why:#}", ranks.rank());
        ranks.abort();
    }
    result
}

fn train(args: &Args, ranks: &dyn Ranks) -> anyhow::Result<()> {
    super::set_threads(args.threads.or(ranks.threads()))?;
    let config = TrainConfig::read(&args.config)?;
    if args.plan {
        let plan = plan(&config, &args.device.device()?, ranks)?;
        return if ranks.rank() == 0 {
            print_plan(args, &plan, ranks.count())
        } else {
            Ok(())
        };
    }
    ensure!(
        !args.resume || checkpoint::exists(&config.out),
        "{}: holds no checkpoint to go on from; leave --resume out to start",
        config.out.display()
    );
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let device = args.device.device()?;
    let first = ranks.rank() == 0;
    // `mpirun` may pass on a signal that the ranks have had already.
    let alone = ranks.count() == 1;
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            if alone {
                std::process::exit(130);
            }
        } else if alone {
            eprintln!("stopping after this step, with a checkpoint; again to stop at once");
        }
    })?;
    if first && ranks.count() > 1 {
        let (count, threads) = (ranks.count(), rayon::current_num_threads());
        eprintln!("{count} ranks, {threads} threads in the first");
    }
    let mut progress = Progress::new(config.optimise.samples())?;
    train::run::run(&config, &device, ranks, &stop, &mut |event| {
        if !first {
            if let Event::Note(note) = &event {
                eprintln!("rank {}: note: {note}", ranks.rank());
            }
            return;
        }
        if let (true, Event::Logged(line)) = (args.json, &event) {
            // Who reads along may leave; the run goes on.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        progress.show(&event);
    })?;
    if !first {
        return Ok(());
    }
    let done = progress.step == config.optimise.steps as u64;
    progress.bar.finish_and_clear();
    if done {
        eprintln!("{}", config.out.join("report.html").display());
    } else {
        eprintln!("stopped with a checkpoint; run the same command to go on");
    }
    Ok(())
}

fn print_plan(args: &Args, plan: &Plan, ranks: usize) -> anyhow::Result<()> {
    let out = &mut std::io::stdout();
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    if args.json {
        let line = serde_json::json!({ "config": args.config, "ranks": ranks, "plan": plan });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    let memory = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.2} GB", bytes as f64 / 1e9),
        None => "unknown on this system".to_owned(),
    };
    let on_disk = |what: &str, bytes: u64| match bytes {
        0 => String::new(),
        bytes => format!("; {what} take {:.3} GB on disk", bytes as f64 / 1e9),
    };
    let on_disk = on_disk("encoded prompts", plan.text_cache_bytes)
        + &on_disk("latents", plan.latent_cache_bytes)
        + &on_disk(
            "two checkpoints and the result",
            2 * plan.checkpoint_bytes + plan.result_bytes,
        );
    let all = Duration::from_secs_f64(plan.seconds_per_step * plan.steps as f64);
    writeln!(
        out,
        "trains {} values over {} frozen ones; {} samples a step{}; about {:.2} s a step, {} for {} steps; peak memory about {}, of {} free now{on_disk}",
        plan.trained,
        plan.frozen,
        plan.samples,
        if ranks > 1 { " in each rank" } else { "" },
        plan.seconds_per_step,
        indicatif::HumanDuration(all),
        plan.steps,
        memory(plan.peak_bytes),
        memory(plan.available_bytes)
    )?;
    Ok(())
}

/// How often a line is printed where no terminal shows the bar.
const LINE: Duration = Duration::from_secs(30);

/// The progress line: a bar in a terminal, else a line now and then and at the last step.
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
            Event::Tested { off } => self.say(&format!(
                "self-test: gradients agree with those of plain operations on the CPU to {off:.0e}"
            )),
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
        let last = self.step == self.steps;
        if !self.terminal && (last || self.said.elapsed() > LINE) {
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
