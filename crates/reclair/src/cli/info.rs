//! `reclair info`: what a prior and an adapter are made of.

use std::io::Write;

use burn::tensor::Device;
use clap::Parser;
use priors::{
    any::AnyPrior, clip::ClipText, flow::Prior, folder::Folder, model::PriorModel, t5::T5Encoder,
    vae::AutoencoderKl, weights::Weights,
};
use reclair::embedded;
use restore::{
    adapter::RestorationAdapter,
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde_json::{Value, json};

/// Arguments of `info`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The prior: `mini` (embedded), or a folder in diffusers' layout; weights are not needed.
    #[arg(long, default_value = "mini")]
    prior: String,
    /// An adapter folder; mini's own by default.
    #[arg(long)]
    adapter: Option<String>,
    /// Rank of LoRA on the self-attention, for the count.
    #[arg(long, default_value_t = 32)]
    lora_rank: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it: parameter counts from the configurations alone.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    super::in_range("--lora-rank", args.lora_rank as f64, 1.0, 4096.0)?;
    let mini = args.prior == "mini";
    let prior = if mini {
        embedded::mini_prior()
    } else {
        Folder::Disk(args.prior.clone().into())
    };
    let adapter = match &args.adapter {
        Some(folder) => Some(Folder::Disk(folder.into())),
        None => mini.then(embedded::mini_adapter),
    };
    let device = Device::flex();
    let blank = || Weights::blank(&device);
    let (network_w, vae_w, adapter_w, lora_w) = (blank(), blank(), blank(), blank());
    let network = AnyPrior::from_folder(&prior, &network_w)?;
    let file = "vae/config.json";
    AutoencoderKl::from_json(&prior.json(file)?, &prior.path(file), &vae_w)?;
    let mut parts = vec![
        (network.kind().folder().to_owned(), network_w.count()),
        ("vae".to_owned(), vae_w.count()),
    ];
    for part in ["text_encoder", "text_encoder_2", "text_encoder_3"] {
        let file = format!("{part}/config.json");
        if !prior.has(&file) {
            continue;
        }
        let (json, path, w) = (prior.json(&file)?, prior.path(&file), blank());
        if part == "text_encoder_3" {
            T5Encoder::from_json(&json, &path, &w)?;
        } else {
            ClipText::from_json(&json, &path, &w)?;
        }
        parts.push((part.to_owned(), w.count()));
    }
    let scheduler = PriorModel::open_scheduler(&prior)?;
    if let Some(adapter) = &adapter {
        let file = "restoration_adapter/config.json";
        RestorationAdapter::from_json(
            &adapter.json(file)?,
            &adapter.path(file),
            &network,
            &adapter_w,
        )?;
    }
    let lora = LoraConfig {
        rank: args.lora_rank,
        alpha: args.lora_rank as f64,
    };
    Lora::new(&lora, &self_attention_targets(&network_w.shapes()), &lora_w)?;
    parts.push(("restoration_adapter".to_owned(), adapter_w.count()));
    let mut parameters: serde_json::Map<String, Value> = parts
        .iter()
        .map(|(part, count)| (part.clone(), json!(count)))
        .collect();
    parameters.insert("lora".into(), json!(lora_w.count()));
    let sites: Vec<_> = network.sites().iter().map(|site| json!({
        "block": site.block, "name": site.name, "channels": site.channels, "downscale": site.downscale,
    })).collect();
    let about = json!({
        "prior": args.prior,
        "prediction": scheduler.prediction(),
        "segments": network.segments(),
        "sites": sites,
        "parameters": parameters,
    });
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{about}")?;
        return Ok(());
    }
    writeln!(
        out,
        "prior {} ({} segments, predicts {})",
        args.prior,
        network.segments(),
        about["prediction"]
    )?;
    for (part, count) in &parts {
        writeln!(out, "  {part:<20} {count:>14} parameters")?;
    }
    writeln!(
        out,
        "  {:<20} {:>14} parameters at rank {}",
        "lora",
        lora_w.count(),
        args.lora_rank
    )?;
    writeln!(out, "  adapters may stand after blocks:")?;
    for site in network.sites() {
        writeln!(
            out,
            "    {} {:<14} {:>5} channels at 1/{} of the latent",
            site.block, site.name, site.channels, site.downscale
        )?;
    }
    Ok(())
}
