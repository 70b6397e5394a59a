"""Loads what `reclair export` writes with the current diffusers and compares outputs. Not part of the tests: run it as

    python3 load_exported.py target/release/reclair

A tiny SDXL pipeline is saved, a LoRA is trained nowhere but filled by the formula, exported in each form, loaded with `load_lora_weights`
(PEFT's form with PEFT), and the U-Net's output compared with that of the LoRA that was exported. The merged folder is loaded as a whole. Then a tiny adapter is trained by `reclair train`, and the LoRA
file in its folder is loaded and compared with `export --adapter --merged`.
"""

import os
import subprocess
import sys
import tempfile

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

from formula import weight
import lora_text
from load_exported_sd3 import close, train
from load_single_file import sdxl_parts
from lora_files import unet_forms
from single_file import SMALL_UNET

torch.set_num_threads(1)
RECLAIR = os.path.abspath(sys.argv[1])


def pipeline(unet):
    parts = dict.fromkeys(["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"])
    return StableDiffusionXLPipeline(unet=unet, **parts)


def bare():
    net = UNet2DConditionModel(**SMALL_UNET)
    net.load_state_dict({k: weight(k, v.shape) for k, v in net.state_dict().items()})
    return net.eval()


def output(net):
    x, text = weight("x", (1, 4, 16, 16)), weight("text", (1, 5, net.config.cross_attention_dim))
    d = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
    added = {"text_embeds": weight("pooled", (1, d)), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad():
        return net(x, torch.tensor([501]), text, added_cond_kwargs=added).sample


def loaded(file, scale=1.0, net=None):
    pipe = pipeline(net or bare())
    pipe.load_lora_weights(file)
    pipe.set_adapters(pipe.get_active_adapters(), scale)
    return output(pipe.unet)


def fused(file, scale):
    """diffusers' own merged U-Net: merging rounds once more than the LoRA beside the weight."""
    pipe = pipeline(bare())
    pipe.load_lora_weights(file)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    return pipe.unet


def export(*args):
    run = subprocess.run([RECLAIR, "export", *args], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(run.stderr.strip())


def main():
    with tempfile.TemporaryDirectory() as place:
        at = lambda name: os.path.join(place, name)
        bare().save_pretrained(at("prior/unet"))
        forms, _, _ = unet_forms()
        kohya = {k: v.contiguous() for k, v in forms["kohya"].items() if "lora_te" not in k}
        save_file(kohya, at("in.safetensors"))
        plain, wanted, half = output(bare()), loaded(at("in.safetensors")), loaded(at("in.safetensors"), 0.5)
        got = {}
        for form in ["kohya", "diffusers"]:
            out = at(form + ".safetensors")
            export("--prior", at("prior"), "--lora", at("in.safetensors"), "--form", form, "-o", out)
            got[form] = loaded(out)
            export("--prior", at("prior"), "--lora", at("in.safetensors") + ":0.5", "--form", form, "-o", out)
            got[form + " at 0.5"] = loaded(out)
        export("--prior", at("prior"), "--lora", at("in.safetensors"), "--form", "peft", "-o", at("peft"))
        got["peft"] = output(PeftModel.from_pretrained(bare(), at("peft")).eval())
        export("--prior", at("prior"), "--lora", at("in.safetensors") + ":0.5", "--merged", "-o", at("merged"))
        merged = UNet2DConditionModel.from_pretrained(at("merged/unet")).eval()
        theirs = fused(at("in.safetensors"), 0.5)
        worst = max((v - theirs.state_dict()[k]).abs().max().item() for k, v in merged.state_dict().items())
        error = (output(merged) - output(theirs)).abs().max().item()
        print(f"merged at 0.5: weights differ from diffusers' fuse_lora by {worst:.1e}, the output by {error:.1e}")
        beside = (output(theirs) - half).abs().max().item()
        print(f"(diffusers' merged output differs from its own unmerged one by {beside:.1e})")
        assert worst <= 1e-6 and error <= max(2 * beside, 1e-5)
        change = (wanted - plain).abs().max().item()
        for name, result in got.items():
            reference = half if "0.5" in name else wanted
            error = (result - reference).abs().max().item()
            print(f"{name}: differs by {error:.2e}; the LoRA changes the output by {change:.2e}")
            assert error <= 1e-5 * max(1.0, reference.abs().max().item()), name
        text_encoders(at)
        trained(lambda name: at("train/" + name))


def text_encoders(at):
    """LoRA of text encoders: diffusers fuses what reclair writes as it fuses the file it was made of, and reclair merges alike."""
    for name, net in lora_text.pipeline().components.items():
        if net is not None and hasattr(net, "save_pretrained"):
            net.float().save_pretrained(at(f"text/{name}"))
    file = lora_text.forms()["kohya"]
    save_file(file, at("text.safetensors"))
    wanted = lora_text.fused(file)
    near = lambda got: max((got[k] - v).abs().max().item() for k, v in wanted.items())
    for form in ["kohya", "diffusers"]:
        out = at(f"text-{form}.safetensors")
        export("--prior", at("text"), "--lora", at("text.safetensors"), "--form", form, "-o", out)
        error = near(lora_text.fused(out))
        print(f"text encoders, {form}: fused weights differ by {error:.1e}")
        assert error <= 1e-6, form
    export("--prior", at("text"), "--lora", at("text.safetensors"), "--merged", "-o", at("text-merged"))
    merged = {name: load_file(at(f"text-merged/{name}/model.safetensors")) for name in lora_text.WIDTHS}
    error = near({f"{name}:{k}": v for name, state in merged.items() for k, v in state.items()})
    print(f"text encoders, merged: weights differ by {error:.1e}")
    assert error <= 1e-6


def trained(at):
    """The file that `train` writes, with diffusers and merged by reclair."""
    width = 4 * SMALL_UNET["block_out_channels"][0]
    adapter = f'_class_name = "UnetRestorationAdapter"\nblock = "D1"\nafter = [0, 4]\nlq_channels = 4\nd_emb = {width}\ngroups = 2'
    file, own = train(at, sdxl_parts(), "unet", adapter)
    net = lambda place: UNet2DConditionModel.from_pretrained(place + "/unet", torch_dtype=torch.float32).eval()
    plain = output(net(at("prior")))
    # Merging rounds once more, and groups of one channel make much of that, as in diffusers' own (see above).
    close("trained by reclair, load_lora_weights", loaded(file, net=net(at("prior"))), output(net(own)), plain, 2e-4)


if __name__ == "__main__":
    main()
