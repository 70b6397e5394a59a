//! `reclair info`: what a prior and an adapter are made of.

use std::io::Write;

use burn::tensor::Device;
use clap::Parser;
use priors::{
    clip::ClipText,
    flow::Prior,
    folder::{Folder, PriorModel},
    unet::Unet,
    vae::AutoencoderKl,
    weights::Weights,
};
use reclair::embedded;
use restore::{
    adapter::RestorationAdapter,
    lora::{Lora, LoraConfig, self_attention_targets},
};
use serde_json::json;

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
    let (unet_w, vae_w, text_w, adapter_w, lora_w) = (blank(), blank(), blank(), blank(), blank());
    let file = "unet/config.json";
    let unet = Unet::from_json(&prior.json(file)?, &prior.path(file), &unet_w)?;
    let file = "vae/config.json";
    AutoencoderKl::from_json(&prior.json(file)?, &prior.path(file), &vae_w)?;
    let file = "text_encoder/config.json";
    ClipText::from_json(&prior.json(file)?, &prior.path(file), &text_w)?;
    let scheduler = PriorModel::open_scheduler(&prior)?;
    if let Some(adapter) = &adapter {
        let file = "restoration_adapter/config.json";
        RestorationAdapter::from_json(
            &adapter.json(file)?,
            &adapter.path(file),
            unet.sites(),
            &adapter_w,
        )?;
    }
    let lora = LoraConfig {
        rank: args.lora_rank,
        alpha: args.lora_rank as f64,
    };
    Lora::new(&lora, &self_attention_targets(&unet_w.shapes()), &lora_w)?;
    let sites: Vec<_> = unet.sites().iter().map(|site| json!({
        "block": site.block, "name": site.name, "channels": site.channels, "downscale": site.downscale,
    })).collect();
    let about = json!({
        "prior": args.prior,
        "prediction": scheduler.prediction(),
        "segments": unet.segments(),
        "sites": sites,
        "parameters": {
            "unet": unet_w.count(),
            "vae": vae_w.count(),
            "text_encoder": text_w.count(),
            "restoration_adapter": adapter_w.count(),
            "lora": lora_w.count(),
        },
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
        unet.segments(),
        about["prediction"]
    )?;
    for part in ["unet", "vae", "text_encoder", "restoration_adapter"] {
        writeln!(
            out,
            "  {part:<20} {:>14} parameters",
            about["parameters"][part]
        )?;
    }
    writeln!(
        out,
        "  {:<20} {:>14} parameters at rank {}",
        "lora",
        lora_w.count(),
        args.lora_rank
    )?;
    writeln!(out, "  adapters may stand after blocks:")?;
    for site in unet.sites() {
        writeln!(
            out,
            "    {} {:<14} {:>5} channels at 1/{} of the latent",
            site.block, site.name, site.channels, site.downscale
        )?;
    }
    Ok(())
}
