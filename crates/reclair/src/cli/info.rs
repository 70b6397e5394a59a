//! `reclair info`: what a prior and an adapter are made of.

use std::io::Write;

use burn::tensor::Device;
use clap::Parser;
use priors::{
    clip::ClipText, flow::Prior, folder::Folder, model::PriorModel, t5::T5Encoder,
    vae::AutoencoderKl, weights::Weights,
};
use restore::adapter::{About, ENCODER_FOLDER, count_encoder, has_encoder};
use serde_json::{Map, Value, json};

use super::table3::{Counted, Model, Row};

/// Arguments of `info`.
#[derive(Debug, Parser)]
pub(super) struct Args {
    /// The prior: `mini`, `sdxl`, `sd3`, `sd3.5-medium`, `sd3.5-large` (configurations in the program), a folder in diffusers'
    /// layout (weights are not needed) or a safetensors checkpoint.
    #[arg(long, default_value = "mini")]
    prior: String,
    #[command(flatten)]
    parts: super::parts::Parts,
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
    let model = Model::named(&args.prior);
    let prior = match model {
        Some(model) => {
            args.parts.refuse(&args.prior)?;
            model.folder()
        }
        None => super::prior(&args.prior, &args.parts, super::Consent::default())?,
    };
    let counted = Counted::open(&prior)?;
    let row = model
        .map(|model| counted.row(model, args.lora_rank))
        .transpose()?;
    let folder = super::adapter(args.adapter.as_deref(), &args.prior);
    let adapter = match &folder {
        // An encoder may stand alone.
        Some(adapter)
            if adapter.has("restoration_adapter/config.json") || !has_encoder(adapter) =>
        {
            counted.adapter_of(adapter)?
        }
        Some(_) => 0,
        None => row.as_ref().map_or(0, |row| row.adapter),
    };
    let mut parameters = Map::new();
    parameters.insert(prior.network().into(), counted.count().into());
    for part in ["vae", "text_encoder", "text_encoder_2", "text_encoder_3"] {
        if let Some(count) = count(&prior, part)? {
            parameters.insert(part.into(), count.into());
        }
    }
    parameters.insert("restoration_adapter".into(), adapter.into());
    if let Some(folder) = &folder
        && let Some(count) = count_encoder(folder, &Device::flex())?
    {
        parameters.insert(ENCODER_FOLDER.into(), count.into());
    }
    parameters.insert("lora".into(), counted.lora(args.lora_rank)?.into());
    let sites: Vec<_> = counted
        .network
        .sites()
        .iter()
        .map(|site| {
            json!({
                "block": site.block, "name": site.name, "channels": site.channels, "downscale": site.downscale,
            })
        })
        .collect();
    let about = json!({
        "prior": args.prior,
        "prediction": PriorModel::open_scheduler(&prior)?.prediction(),
        "segments": counted.network.segments(),
        "sites": sites,
        "parameters": parameters,
        "adapter": folder.as_ref().map(About::open).transpose()?.flatten(),
        "table3": row,
    });
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{about}")?;
        return Ok(());
    }
    print(&mut out, args, &about, &counted)?;
    if let Some(row) = row {
        print_row(&mut out, &row)?;
    }
    Ok(())
}

/// Parameters of an autoencoder or text encoder, where the prior has it.
fn count(prior: &Folder, part: &str) -> anyhow::Result<Option<usize>> {
    let file = format!("{part}/config.json");
    if !prior.has(&file) {
        return Ok(None);
    }
    let w = Weights::blank(&Device::flex());
    let (json, path) = (prior.json(&file)?, prior.path(&file));
    match part {
        "vae" => drop(AutoencoderKl::from_json(&json, &path, &w)?),
        "text_encoder_3" => drop(T5Encoder::from_json(&json, &path, &w)?),
        _ => drop(ClipText::from_json(&json, &path, &w)?),
    }
    Ok(Some(w.count()))
}

fn print(
    out: &mut impl Write,
    args: &Args,
    about: &Value,
    counted: &Counted,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "prior {} ({} segments, predicts {})",
        args.prior,
        counted.network.segments(),
        about["prediction"]
    )?;
    for (part, count) in about["parameters"].as_object().into_iter().flatten() {
        let rank = match part.as_str() {
            "lora" => format!(" at rank {}", args.lora_rank),
            _ => String::new(),
        };
        writeln!(out, "  {part:<26} {count:>14} parameters{rank}")?;
    }
    let adapter = &about["adapter"];
    if let Some(prior) = adapter["prior"]["name"].as_str() {
        let licence = adapter["licence"].as_str().unwrap_or("not stated");
        writeln!(
            out,
            "  the adapter was trained for {prior}; licence: {licence}"
        )?;
    }
    writeln!(out, "  adapters may stand after blocks:")?;
    for site in counted.network.sites() {
        writeln!(
            out,
            "    {} {:<14} {:>5} channels at 1/{} of the latent",
            site.block, site.name, site.channels, site.downscale
        )?;
    }
    Ok(())
}

fn print_row(out: &mut impl Write, row: &Row) -> anyhow::Result<()> {
    writeln!(out, "  the paper's table 3:")?;
    let mut lines = vec![
        ("base, frozen", row.base),
        ("Restoration Adapter", row.adapter),
        ("LoRA", row.lora),
        ("trained, both", row.total),
    ];
    if let Some(controlnet) = row.controlnet {
        lines.push(("ControlNet, trimmed as the paper's", controlnet.paper));
        lines.push(("ControlNet, as in diffusers", controlnet.diffusers));
    }
    for (what, count) in lines {
        writeln!(out, "    {what:<36} {count:>14}")?;
    }
    Ok(())
}
