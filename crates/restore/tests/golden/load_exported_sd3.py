"""Loads the LoRA of SD3 that reclair writes with the current diffusers and compares outputs. Not part of the tests: run it as

    python3 load_exported_sd3.py target/release/reclair

A tiny SD3 transformer is saved; a LoRA in kohya's form, on fused projections, is filled by the formula and exported in diffusers' and PEFT's
forms. What it does is known without diffusers' LoRA code: the original weights are changed and converted by diffusers. Then a tiny adapter
is trained by `reclair train`, and the LoRA file in its folder is loaded and compared with `export --adapter --merged`.
"""

import json
import os
import subprocess
import sys
import tempfile

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

from formula import weight
from load_single_file import sd3_parts, write
from lora_files import sd3_forms
from single_file import SMALL_SD3

torch.set_num_threads(1)
RECLAIR = os.path.abspath(sys.argv[1])
TRAIN = """
stage = "adapter"
model = "prior"
out = "run"
start = "fresh"
[data]
images = "photos"
crop_px = 64
degradations = [{ preset = "mild", weight = 1.0 }]
[optimise]
steps = 6
batch = 1
lr = 3e-2
[adapter]
ADAPTER
[lora]
rank = 2
alpha = 5.0
"""


def bare(config=SMALL_SD3):
    net = SD3Transformer2DModel(**config)
    net.load_state_dict({k: weight(k, v.shape) for k, v in net.state_dict().items()})
    return net.eval()


def output(net):
    config = net.config
    x = weight("x", (1, config.in_channels, 8, 8)).to(net.dtype)
    text = weight("text", (1, 5, config.joint_attention_dim)).to(net.dtype)
    pooled = weight("pooled", (1, config.pooled_projection_dim)).to(net.dtype)
    with torch.no_grad():
        return net(hidden_states=x, timestep=torch.tensor([501.0]), encoder_hidden_states=text, pooled_projections=pooled).sample


def pipeline(net):
    parts = ["vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"]
    return StableDiffusion3Pipeline(transformer=net, **dict.fromkeys(parts))


def loaded(net, file, scale=1.0):
    """With the pipeline's loader."""
    pipe = pipeline(net)
    pipe.load_lora_weights(file)
    pipe.set_adapters(pipe.get_active_adapters(), scale)
    return output(pipe.transformer)


def metadata(file):
    """The LoraConfig in the header."""
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["lora_adapter_metadata"])


def reclair(*args):
    run = subprocess.run([RECLAIR, *args], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stderr


def close(name, got, wanted, plain, tolerance=1e-5):
    change, error = (wanted - plain).abs().max().item(), (got - wanted).abs().max().item()
    print(f"{name}: differs by {error:.2e}; the LoRA changes the output by {change:.2e}")
    assert change > 1e-3 and error <= tolerance * max(1.0, wanted.abs().max().item()), name


def exported(at):
    bare().save_pretrained(at("plain/transformer"))
    forms, changed, _ = sd3_forms()
    save_file({k: v.contiguous() for k, v in forms["sd3_kohya"].items()}, at("in.safetensors"))
    plain = output(bare())
    net = bare()
    net.load_state_dict(net.state_dict() | changed)
    wanted = output(net)
    export = lambda *more: reclair("export", "--prior", at("plain"), "--lora", *more)
    print(export(at("in.safetensors"), "--form", "diffusers", "-o", at("diffusers.safetensors")).strip())
    close("diffusers, load_lora_weights", loaded(bare(), at("diffusers.safetensors")), wanted, plain)
    net = bare()
    net.load_lora_adapter(load_file(at("diffusers.safetensors")), prefix="transformer", metadata=metadata(at("diffusers.safetensors")))
    close("diffusers, load_lora_adapter", output(net), wanted, plain)
    export(at("in.safetensors"), "--form", "peft", "-o", at("peft"))
    close("PEFT", output(PeftModel.from_pretrained(bare(), at("peft")).eval()), wanted, plain)
    export(at("in.safetensors"), "--merged", "-o", at("merged"))
    merged = SD3Transformer2DModel.from_pretrained(at("merged/transformer")).eval()
    close("merged", output(merged), wanted, plain)
    half = loaded(bare(), at("diffusers.safetensors"), 0.5)
    export(at("in.safetensors") + ":0.5", "--form", "diffusers", "-o", at("half.safetensors"))
    close("diffusers at 0.5", loaded(bare(), at("half.safetensors")), half, plain)


def train(at, parts, network, adapter):
    """Trains an adapter with LoRA on a prior of these parts: the LoRA file, and a folder with it merged by reclair.

    The network is stored in f32: merged weights are rounded to the type that they are stored in.
    """
    parts[network].float()
    write(at("prior"), parts, network)
    os.makedirs(at("photos"))
    for i in range(4):
        pixels = ((weight(f"photo.{i}", (96, 96, 3)).sin() * 0.5 + 0.5) * 255).byte().numpy()
        Image.fromarray(pixels).resize((192, 192)).save(at(f"photos/{i}.png"))
    with open(at("run.toml"), "w") as file:
        file.write(TRAIN.replace("ADAPTER", adapter))
    reclair("train", at("run.toml"))
    reclair("export", "--prior", at("prior"), "--adapter", at("run/adapter"), "--merged", "-o", at("own"))
    return at("run/adapter/pytorch_lora_weights.safetensors"), at("own")


def trained(at):
    """The file that `train` writes, with diffusers and merged by reclair."""
    parts = sd3_parts()
    # Its tokenizer is not in the program, and zeros stand for its tokens.
    del parts["text_encoder_3"]
    config = parts["transformer"].config
    width = config.num_attention_heads * config.attention_head_dim
    file, own = train(at, parts, "transformer", f'_class_name = "DitRestorationAdapter"\nafter = [0]\nwidth = {width}')
    net = lambda place: SD3Transformer2DModel.from_pretrained(place + "/transformer", torch_dtype=torch.float32).eval()
    plain = output(net(at("prior")))
    close("trained by reclair, load_lora_weights", loaded(net(at("prior")), file), output(net(own)), plain)


def main():
    with tempfile.TemporaryDirectory() as place:
        at = lambda name: os.path.join(place, name)
        exported(at)
        trained(at)


if __name__ == "__main__":
    main()
