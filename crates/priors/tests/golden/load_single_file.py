"""Loads the single file that `reclair export --merged --layout single-file` writes with the current diffusers. Not part of the tests:

    python3 load_single_file.py target/release/reclair

Tiny priors of SDXL's and SD3's shape are saved as diffusers folders, written as one file by reclair, and every network is loaded from
that with diffusers' own key conversion (`from_single_file`, `create_diffusers_clip_model_from_ldm`): each tensor must be the folder's.
"""

import json
import os
import subprocess
import sys
import tempfile

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_sd3_t5_checkpoint_to_diffusers, create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from formula import weight
from single_file import SMALL_SD3, SMALL_UNET

RECLAIR = os.path.abspath(sys.argv[1])
# Four levels, as diffusers' converter expects.
VAE = dict(block_out_channels=[8, 8, 8, 8], norm_num_groups=4, layers_per_block=1, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
CLIP = dict(vocab_size=49408, max_position_embeddings=77, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, eos_token_id=2)
T5 = dict(vocab_size=40, d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
SCHEDULERS = {
    "unet": dict(_class_name="EulerDiscreteScheduler", beta_schedule="scaled_linear", num_train_timesteps=1000, prediction_type="epsilon"),
    "transformer": dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=3.0),
}


def filled(net):
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(weight(name, p.shape))
    return net.half()


def clip(width, unit=False):
    net = filled(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP, hidden_size=width, projection_dim=width)))
    if unit:
        net.text_projection.weight.data.copy_(torch.eye(width))
    return net


def write(place, parts, network):
    for name, net in parts.items():
        net.save_pretrained(os.path.join(place, name))
    files = {"scheduler/scheduler_config": SCHEDULERS[network], "model_index": {}}
    files |= {f"tokenizer{i}/tokenizer_config": {"pad_token": pad} for i, pad in [("", "<|endoftext|>"), ("_2", "!")]}
    for name, value in files.items():
        path = os.path.join(place, name + ".json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            json.dump(value, file)


def check(kind, network, parts, load):
    with tempfile.TemporaryDirectory() as place:
        folder, file = os.path.join(place, "prior"), os.path.join(place, "one.safetensors")
        write(folder, parts, network)
        args = [RECLAIR, "export", "--prior", folder, "--merged", "--layout", "single-file", "-o", file]
        run = subprocess.run(args, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        for name, net in parts.items():
            got, wanted = load(name, net, file, folder), net.state_dict()
            assert sorted(got) == sorted(wanted), (name, set(got) ^ set(wanted))
            assert all(got[k].equal(v) for k, v in wanted.items()), name
            print(f"{kind} {name}: {len(wanted)} tensors, all equal")


def of_network(name, net, file, folder):
    loaded = type(net).from_single_file(file, config=folder, subfolder=name, torch_dtype=torch.float16, local_files_only=True)
    return loaded.state_dict()


def of_clip(name, net, file, folder):
    return create_diffusers_clip_model_from_ldm(
        type(net), load_file(file), subfolder=name, config=folder, torch_dtype=torch.float16, local_files_only=True
    ).state_dict()


def of_any(name, net, file, folder):
    if name == "text_encoder_3":
        got = convert_sd3_t5_checkpoint_to_diffusers(load_file(file))
        # The table has two names in the module and one in files.
        return got | {"encoder.embed_tokens.weight": got["shared.weight"]}
    return (of_clip if name.startswith("text_encoder") else of_network)(name, net, file, folder)


def sd3_parts():
    sd3 = SMALL_SD3 | dict(in_channels=16, out_channels=16, joint_attention_dim=48, pooled_projection_dim=40)
    return {
        "transformer": filled(SD3Transformer2DModel(**sd3)),
        "vae": filled(AutoencoderKL(**VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)),
        "text_encoder": clip(16, unit=True),
        "text_encoder_2": clip(24),
        "text_encoder_3": filled(T5EncoderModel(T5Config(**T5))),
    }


def sdxl_parts():
    unet = SMALL_UNET | dict(cross_attention_dim=40, projection_class_embeddings_input_dim=24 + 6 * SMALL_UNET["addition_time_embed_dim"])
    return {
        "unet": filled(UNet2DConditionModel(**unet)),
        "vae": filled(AutoencoderKL(**VAE, latent_channels=4)),
        "text_encoder": clip(16),
        "text_encoder_2": clip(24),
    }


def main():
    check("SDXL", "unet", sdxl_parts(), of_any)
    check("SD3", "transformer", sd3_parts(), of_any)


if __name__ == "__main__":
    main()
