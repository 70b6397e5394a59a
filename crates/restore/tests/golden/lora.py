"""Golden of a PEFT LoRA in diffusers' UNet2DConditionModel: bare, adapted, fused, and the names it is saved under."""

import json
import os
import sys
import tempfile

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

import unet
from formula import weight
from golden import config_of, folder, save, script, versions, worst

torch.set_num_threads(1)

RANK, ALPHA = 4, 4
TARGET = r".*\.attn1\.(to_q|to_k|to_v|to_out\.0)"
# A parameter of PEFT is <module>.lora_A.default.weight; a file's key is unet.<module>.lora_A.weight.
KEY = lambda name: "unet." + name.replace(".default.", ".")


def adapted(alpha):
    net = unet.model(unet.SDXL)
    config = unet.config_of(net)
    net.add_adapter(LoraConfig(r=RANK, lora_alpha=alpha, target_modules=TARGET, init_lora_weights=False))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.copy_(weight(KEY(name), p.shape))
    return net.eval().double(), config


def saved(layers):
    """What save_lora_weights writes: keys with shapes, and the header."""
    with tempfile.TemporaryDirectory() as place:
        StableDiffusionXLPipeline.save_lora_weights(place, unet_lora_layers=layers)
        names = os.listdir(place)
        assert names == ["pytorch_lora_weights.safetensors"], names
        with safe_open(os.path.join(place, names[0]), "pt") as file:
            keys = {k: list(file.get_slice(k).get_shape()) for k in sorted(file.keys())}
            for k in keys:
                name = k.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
                assert file.get_tensor(k).float().equal(weight(name, keys[k])), k
            return keys, file.metadata()


def main():
    net, config = adapted(ALPHA)
    inputs = unet.sdxl_inputs(2, 16, 16, [981, 7])
    run = lambda: unet.forward(net, inputs)
    with torch.no_grad():
        out = {"output.adapted": run()}
        net.set_adapters("default", 0.5)
        out["output.scale_0.5"] = run()
        net.disable_adapters()
        out["output.bare"] = run()
        net.enable_adapters()
        net.set_adapters("default", 1.0)
        net.fuse_lora()
        out["output.fused"] = run()
        net.unfuse_lora()
        half, _ = adapted(ALPHA / 2)
        out["output.alpha_2"] = unet.forward(half, inputs)
    assert torch.allclose(out["output.fused"], out["output.adapted"], atol=1e-9)
    assert torch.allclose(out["output.alpha_2"], out["output.scale_0.5"], atol=1e-9)
    print("adapted - bare:", (out["output.adapted"] - out["output.bare"]).abs().max().item())
    note = f"""LoRA of rank {RANK}, alpha {ALPHA} on attn1's to_q, to_k, to_v, to_out.0 of every transformer block; A and B by the formula under the
    names of lora_unet_tiny.json. output.bare without, adapted with, scale_0.5 with half the weight, alpha_2 with alpha 2, fused after
    W += (alpha/rank) B A. Same inputs as unet_sdxl_tiny_batch. Computed in f64."""
    save("lora_unet_tiny", inputs | out, config, note, rank=RANK, alpha=ALPHA)
    # diffusers' SD3 scripts save PEFT's names, its SDXL scripts convert to the older ones first.
    layers = get_peft_model_state_dict(net)
    peft, metadata = saved(layers)
    older, _ = saved(convert_state_dict_to_diffusers(layers))
    with open(os.path.join(folder(), "lora_unet_tiny.json"), "w") as file:
        listing = lambda keys: "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in keys.items()) + "\n}"
        header = {"script": script(), "versions": json.loads(versions()), "metadata": metadata}
        file.write(f'{json.dumps(header)[:-1]},\n"peft": {listing(peft)},\n"older": {listing(older)}}}\n')


if __name__ == "__main__":
    main()
