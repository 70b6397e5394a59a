"""Goldens of checkpoints in Stability's own names: diffusers' converters are the judge.

For tiny networks the original file is written here by inverting the names, and it is stored only after diffusers' own conversion has
given back every tensor, bit for bit: so its values are those of the formula under diffusers' names. For the full-size networks only names
and shapes are compared, as SHA-256 of the sorted lines "name<TAB>shape": `single_file_names.json`.
"""

import hashlib
import json
import re

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import unet as unet_golden
from formula import weight
from golden import config_of, folder, save, versions

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_original(state, config):
    """SDXL's own names."""
    n, out = config["layers_per_block"], {}
    crossed = [kind.startswith("Cross") for kind in config["up_block_types"]]
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        if module in UNET:
            key = UNET[module]
        else:
            for ours, theirs in RESNET.items():
                module = re.sub(rf"(resnets\.\d+)\.{ours}$", rf"\1.{theirs}", module)
            p = module.split(".")
            if p[0] == "mid_block":
                at = 1 if p[1] == "attentions" else 2 * int(p[2])
                key = ".".join(["middle_block", str(at)] + p[3:])
            elif p[0] == "down_blocks":
                i, j = int(p[1]), int(p[3])
                if p[2] == "downsamplers":
                    key = f"input_blocks.{(i + 1) * (n + 1)}.0.op"
                else:
                    key = ".".join(["input_blocks", str(i * (n + 1) + j + 1), "01"[p[2] == "attentions"]] + p[4:])
            else:
                i, j = int(p[1]), int(p[3])
                if p[2] == "upsamplers":
                    key = f"output_blocks.{i * (n + 1) + n}.{2 if crossed[i] else 1}.conv"
                else:
                    key = ".".join(["output_blocks", str(i * (n + 1) + j), "01"[p[2] == "attentions"]] + p[4:])
        out["model.diffusion_model." + key + "." + kind] = tensor
    return out


def vae_original(state, config):
    """The autoencoder's own names."""
    levels, out = len(config["up_block_types"]), {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, tensor in state.items():
        key = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)
        for ours, theirs in attention.items():
            if f"attentions.0.{ours}." in key:
                key = key.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
                if tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]
        out["first_stage_model." + key] = tensor
    return out


def clip_original(state, layers, prefix="conditioner.embedders.1.model."):
    """OpenCLIP's names."""
    outside = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    out = {prefix + theirs: state[ours] for ours, theirs in outside.items()}
    out[prefix + "text_projection"] = state["text_projection.weight"].T.contiguous()
    out[prefix + "logit_scale"] = torch.ones(())
    for i in range(layers):
        a, b = f"text_model.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
        for kind in ["weight", "bias"]:
            out[b + "attn.in_proj_" + kind] = torch.cat([state[f"{a}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            for ours, theirs in inside.items():
                out[f"{b}{theirs}.{kind}"] = state[f"{a}{ours}.{kind}"]
    return out


def swap(tensor):
    return torch.cat(tensor.chunk(2)[::-1])


def transformer_original(state, config):
    """SD3's own names."""
    out, put = {}, lambda key, tensor: out.__setitem__("model.diffusion_model." + key, tensor)
    put("pos_embed", state["pos_embed.pos_embed"])
    for kind in ["weight", "bias"]:
        outside = {
            "pos_embed.proj": "x_embedder.proj",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
            "context_embedder": "context_embedder",
            "proj_out": "final_layer.linear",
        }
        for ours, theirs in outside.items():
            put(f"{theirs}.{kind}", state[f"{ours}.{kind}"])
        put(f"final_layer.adaLN_modulation.1.{kind}", swap(state[f"norm_out.linear.{kind}"]))
        n = config["num_layers"]
        for i in range(n):
            get = lambda name: state.get(f"transformer_blocks.{i}.{name}.{kind}")
            x, c = f"joint_blocks.{i}.x_block.", f"joint_blocks.{i}.context_block."
            fused = [("attn", x, "to_{}"), ("attn2", x, "to_{}"), ("attn", c, "add_{}_proj")]
            for attn, stream, names in fused:
                parts = [get(f"{attn}.{names.format(p)}") for p in "qkv"]
                if parts[0] is not None:
                    put(f"{stream}{attn}.qkv.{kind}", torch.cat(parts))
            context = get("norm1_context.linear")
            put(f"{c}adaLN_modulation.1.{kind}", swap(context) if i == n - 1 else context)
            renamed = {
                "attn.to_out.0": x + "attn.proj",
                "attn2.to_out.0": x + "attn2.proj",
                "attn.to_add_out": c + "attn.proj",
                "attn.norm_q": x + "attn.ln_q",
                "attn.norm_k": x + "attn.ln_k",
                "attn.norm_added_q": c + "attn.ln_q",
                "attn.norm_added_k": c + "attn.ln_k",
                "attn2.norm_q": x + "attn2.ln_q",
                "attn2.norm_k": x + "attn2.ln_k",
                "norm1.linear": x + "adaLN_modulation.1",
                "ff.net.0.proj": x + "mlp.fc1",
                "ff.net.2": x + "mlp.fc2",
                "ff_context.net.0.proj": c + "mlp.fc1",
                "ff_context.net.2": c + "mlp.fc2",
            }
            for ours, theirs in renamed.items():
                if get(ours) is not None:
                    put(f"{theirs}.{kind}", get(ours))
    return out


CLIP = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8, projection_dim=16)
SMALL_UNET = unet_golden.SDXL | dict(block_out_channels=[2, 4, 4], norm_num_groups=2, attention_head_dim=[1, 1, 2], cross_attention_dim=2, addition_time_embed_dim=2, projection_class_embeddings_input_dim=14)
SMALL_VAE = dict(
    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, block_out_channels=[2, 4, 4],
    layers_per_block=2, latent_channels=4, norm_num_groups=2,
)
SMALL_SD3 = dict(
    sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=6,
    caption_projection_dim=8, pooled_projection_dim=5, out_channels=4, pos_embed_max_size=4, dual_attention_layers=(0, 1), qk_norm="rms_norm",
)
SD3 = dict(
    sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192,
)
SD35_MEDIUM = SD3 | dict(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))
SD35_LARGE = SD3 | dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm")


def known(path):
    with open(f"{folder()}/../../src/known/{path}.json") as file:
        return json.load(file)


def state_of(model):
    """Values by the formula, or meta tensors for a full-size network."""
    state = model.state_dict()
    return state if next(iter(state.values())).is_meta else {k: weight(k, v.shape) for k, v in state.items()}


def clip_of(config):
    model = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    return model, state_of(model)


def judged(original, converted, wanted):
    assert sorted(converted) == sorted(wanted), set(converted) ^ set(wanted)
    for key, tensor in wanted.items():
        assert converted[key].shape == tensor.shape, key
        assert tensor.is_meta or converted[key].equal(tensor), key


def parts(unet, vae, clip, sd3):
    """(part, original tensors, converted tensors) of each network; diffusers must give back what was inverted."""
    model, config = unet
    state = state_of(model)
    original = unet_original(state, config)
    converted = convert_ldm_unet_checkpoint(dict(original), config)
    judged(original, converted, state)
    yield "unet", original, converted
    model, config = vae
    state = state_of(model)
    original = vae_original(state, config)
    converted = convert_ldm_vae_checkpoint(dict(original), config)
    judged(original, converted, state)
    yield "vae", original, converted
    model, state = clip
    original = clip_original(state, model.config.num_hidden_layers)
    converted = convert_open_clip_checkpoint(model, dict(original), prefix="conditioner.embedders.1.model.")
    judged(original, converted, state)
    yield "text_encoder_2", original, converted
    for name, model in sd3.items():
        state = state_of(model)
        original = transformer_original(state, model.config)
        converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
        judged(original, converted, state)
        yield name, original, converted


def digest(tensors):
    lines = sorted(f"{k}\t{'x'.join(map(str, v.shape))}" for k, v in tensors.items())
    return {"tensors": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def main():
    unet, vae, clip, sd3 = UNet2DConditionModel(**SMALL_UNET), AutoencoderKL(**SMALL_VAE), clip_of(CLIP), SD3Transformer2DModel(**SMALL_SD3)
    configs = {"unet": unet, "vae": vae, "text_encoder_2": clip[0], "transformer": sd3}
    made = parts((unet, SMALL_UNET), (vae, SMALL_VAE), clip, {"transformer": sd3})
    for part, original, converted in made:
        note = """A tiny network under its original names. diffusers converts it to the names of converted, each tensor with the values that the
        formula gives for its name."""
        save(f"single_file_{part}", original, config_of(configs[part]), note, converted={k: list(v.shape) for k, v in converted.items()})
    clip = known("sdxl/text_encoder_2")
    with torch.device("meta"):
        made = parts(
            (UNet2DConditionModel.from_config(known("sdxl/unet")), known("sdxl/unet")),
            (AutoencoderKL.from_config(known("sdxl/vae")), known("sdxl/vae")),
            clip_of({k: clip[k] for k in CLIP}),
            {"sd3": SD3Transformer2DModel(**SD3), "sd35_medium": SD3Transformer2DModel(**SD35_MEDIUM), "sd35_large": SD3Transformer2DModel(**SD35_LARGE)},
        )
        names = {part: {"original": digest(original), "diffusers": digest(converted)} for part, original, converted in made}
        vae = AutoencoderKL.from_config(known("sd3/vae"))
        names["sd3_vae"] = {"original": digest(vae_original(vae.state_dict(), known("sd3/vae"))), "diffusers": digest(vae.state_dict())}
        control = SD3ControlNetModel(**{k: v for k, v in SD3.items()} | {"num_layers": 6})
    parameters = {"sd3_controlnet": sum(p.numel() for p in control.parameters())}
    text = json.dumps({"script": "crates/priors/tests/golden/single_file.py", "versions": json.loads(versions()), "names": names, "parameters": parameters}, indent=1)
    with open(f"{folder()}/single_file_names.json", "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
