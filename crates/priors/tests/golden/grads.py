"""Goldens of gradients: mini's U-Net under a squared error, the plain autoencoder under its training loss, and AdamW."""

import torch

import unet
import vae
from formula import data
from golden import config_of, save, worst

torch.set_num_threads(1)

# One parameter of each kind, at either end of the network and in the middle.
UNET_PARAMETERS = [
    "conv_in.weight",
    "conv_in.bias",
    "time_embedding.linear_1.weight",
    "time_embedding.linear_2.bias",
    "down_blocks.0.resnets.0.norm1.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.downsamplers.0.conv.weight",
    "down_blocks.1.resnets.0.time_emb_proj.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight",
    "down_blocks.2.attentions.0.norm.bias",
    "down_blocks.2.attentions.0.proj_in.weight",
    "down_blocks.2.attentions.0.transformer_blocks.0.norm1.weight",
    "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
    "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight",
    "up_blocks.0.upsamplers.0.conv.bias",
    "up_blocks.1.resnets.1.norm2.bias",
    "up_blocks.2.resnets.0.conv1.weight",
    "conv_norm_out.weight",
    "conv_out.weight",
    "conv_out.bias",
]
VAE_PARAMETERS = [
    "encoder.conv_in.weight",
    "encoder.down_blocks.1.downsamplers.0.conv.weight",
    "encoder.mid_block.attentions.0.to_q.weight",
    "encoder.conv_out.weight",
    "decoder.mid_block.attentions.0.group_norm.weight",
    "decoder.up_blocks.0.upsamplers.0.conv.bias",
    "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
    "decoder.conv_out.weight",
]


def gradients(model, names, leaves, loss):
    """The loss and its gradients by name: parameters, and leaves by theirs."""
    model.zero_grad()
    value = loss()
    value.backward()
    parameters = dict(model.named_parameters())
    out = {"grad." + name: parameters[name].grad.clone() for name in names}
    out |= {"grad." + name: leaf.grad.clone() for name, leaf in leaves.items()}
    return {"loss": value.detach()} | out


def unet_gradients(model, inputs, target, dtype):
    model = model.to(dtype)
    sample = inputs["input.sample"].to(dtype).requires_grad_()
    text = inputs["input.text"].to(dtype).requires_grad_()
    moved = inputs | {"input.sample": sample, "input.text": text}
    loss = lambda: (unet.forward(model, moved, dtype) - target.to(dtype)).square().mean()
    return gradients(model, UNET_PARAMETERS, {"input.sample": sample, "input.text": text}, loss)


def grads_unet_mini_tiny():
    model = unet.model(unet.MINI)
    inputs = unet.mini_inputs()
    target = data("input.target", [2, 16, 16, 8])
    out = unet_gradients(model, inputs, target, torch.float64)
    report("grads_unet_mini_tiny", out, unet_gradients(model, inputs, target, torch.float32))
    note = """loss = mean((unet(sample, timestep, text) - target)^2) over all elements; grad.<name> its gradient by
    parameter, and by input.sample and input.text. Compare relative to each gradient's largest element. Computed in f64."""
    save("grads_unet_mini_tiny", inputs | {"input.target": target} | out, config_of(model), note)


def vae_gradients(model, image, dtype):
    model = model.to(dtype)
    x = image.to(dtype)

    def loss():
        posterior = model.encode(x).latent_dist
        decoded = model.decode(posterior.mean).sample
        mean, logvar = posterior.mean, posterior.logvar
        kl = 0.5 * (mean**2 + logvar.exp() - 1.0 - logvar)
        return (decoded - x).abs().mean() + KL_WEIGHT * kl.mean()

    return gradients(model, VAE_PARAMETERS, {}, loss)


KL_WEIGHT = 1e-6


def vae_loss_tiny():
    model = vae.model(vae.PLAIN)
    image = data("input.image", [1, 3, 16, 24])
    out = vae_gradients(model, image, torch.float64)
    with torch.no_grad():
        posterior = model.double().encode(image.double()).latent_dist
        out["l1"] = (model.decode(posterior.mean).sample - image.double()).abs().mean()
        out["kl"] = (0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1.0 - posterior.logvar)).mean()
    assert torch.isclose(out["loss"], out["l1"] + KL_WEIGHT * out["kl"])
    f32 = vae_gradients(model, image, torch.float32)
    report("vae_loss_tiny", {k: out[k] for k in f32}, f32)
    note = """loss = mean(|decode(mean) - image|) + 1e-6 * kl, kl = mean over elements of (mean^2 + exp(logvar) - 1 - logvar) / 2;
    l1 and kl are the two parts; the posterior's mean is decoded, no sampling, no scaling. grad.<parameter>. Compare relative to each
    gradient's largest element. Computed in f64."""
    save("vae_loss_tiny", {"input.image": image} | out, config_of(model), note)


def adamw():
    names = {"a.weight": [2, 4], "b.bias": [5]}
    start = {k: data("start." + k, s).double() for k, s in names.items()}
    curve = {k: data("curve." + k, s).double().abs() + 0.1 for k, s in names.items()}
    goal = {k: data("goal." + k, s).double() for k, s in names.items()}
    curve = {k: v.float().double() for k, v in curve.items()}
    p = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.AdamW(p.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    out = {}
    for step in range(1, 21):
        optimiser.zero_grad()
        loss = sum((0.5 * curve[k] * (p[k] - goal[k]) ** 2).sum() for k in p)
        loss.backward()
        optimiser.step()
        if step % 5 == 0:
            out |= {f"step_{step}.{k}": v.detach().clone() for k, v in p.items()}
    inputs = {f"{kind}.{k}": v for kind, d in [("start", start), ("curve", curve), ("goal", goal)] for k, v in d.items()}
    note = """20 AdamW steps (lr 1e-3, betas .9 .999, eps 1e-8, weight decay 0.01 decoupled, on every tensor) on
    loss = sum(curve/2 * (p - goal)^2) from p = start; step_n.<name> is p after n steps. Computed in f64."""
    save("adamw", inputs | out, note=note)


def report(name, out, f32):
    scaled = lambda d: {k: v / out[k].abs().max() for k, v in d.items()}
    print(name, "loss", out["loss"].item(), "f32 vs f64, relative to the largest element:", worst(scaled(out), scaled(f32)))
    print("  largest elements:", sorted(round(v.abs().max().item(), 5) for v in out.values()))


if __name__ == "__main__":
    grads_unet_mini_tiny()
    vae_loss_tiny()
    adamw()
