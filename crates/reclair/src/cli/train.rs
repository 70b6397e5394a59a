//! `reclair train CONFIG.toml`: a training run with a progress line; Ctrl-C ends it with a checkpoint.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use train::{config::TrainConfig, run::Event};

/// Arguments of `train`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The run's configuration; see CONTRIBUTING.md.
    config: PathBuf,
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
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
    let bar = ProgressBar::new(0);
    let style = "{bar:30} {pos}/{len} steps  {elapsed_precise} elapsed, {eta_precise} to go  {msg}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.enable_steady_tick(Duration::from_secs(1));
    let batch = config.optimise.batch as f64;
    let (mut loss, mut rate) = (None, None);
    train::run::run(
        &config,
        &args.device.device()?,
        &stop,
        &mut |event| match event {
            Event::Start {
                step,
                steps,
                parameters,
            } => {
                bar.set_length(steps as u64);
                bar.set_position(step as u64);
                bar.reset_eta();
                bar.println(format!("training {parameters} values from step {step}"));
            }
            Event::Step(record) => {
                let loss = smooth(&mut loss, record.loss);
                let rate = smooth(&mut rate, batch / record.seconds);
                bar.set_position(record.step as u64);
                bar.set_message(format!("{rate:.1} images/s  loss {loss:.5}"));
            }
            Event::Validated { step, psnr } => {
                bar.println(format!("step {step}: validation PSNR {psnr:.2} dB"))
            }
        },
    )?;
    if stop.load(Ordering::Relaxed) {
        bar.abandon();
        eprintln!("stopped with a checkpoint; run the same command to go on");
    } else {
        bar.finish();
    }
    Ok(())
}

/// A running mean over about twenty values.
fn smooth(mean: &mut Option<f64>, value: f64) -> f64 {
    let next = mean.map_or(value, |mean| 0.95 * mean + 0.05 * value);
    *mean = Some(next);
    next
}
