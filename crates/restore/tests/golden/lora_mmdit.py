"""Golden of a PEFT LoRA on the image stream of diffusers' SD3Transformer2DModel, and the names it is saved under."""

import json
import os
import sys
import tempfile

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

import mmdit
from formula import weight
from golden import config_of, folder, save, script, versions

torch.set_num_threads(1)

RANK = 4
# SD3.5-medium's shape: attn2, the second attention of its first blocks, is not adapted.
CONFIG = mmdit.SD35_MEDIUM
TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
KEY = lambda name: "transformer." + name.replace(".default.", ".")


def main():
    net = mmdit.model(CONFIG)
    config = config_of(net)
    inputs = mmdit.inputs(CONFIG, 1, 8, 12, [601])
    with torch.no_grad():
        bare = mmdit.forward(net, inputs)
    net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=False))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.copy_(weight(KEY(name), p.shape))
        net = net.eval().double()
        adapted = mmdit.forward(net, inputs)
    print("adapted - bare:", (adapted - bare).abs().max().item())
    note = f"""LoRA of rank {RANK}, alpha {RANK} on attn's to_q, to_k, to_v, to_out.0 of every block; A and B by the formula under the
    names of lora_mmdit_tiny.json. output.bare without, output.adapted with. Computed in f64."""
    save("lora_mmdit_tiny", inputs | {"output.bare": bare, "output.adapted": adapted}, config, note, rank=RANK, alpha=RANK)
    with tempfile.TemporaryDirectory() as place:
        StableDiffusion3Pipeline.save_lora_weights(place, transformer_lora_layers=get_peft_model_state_dict(net))
        with safe_open(os.path.join(place, "pytorch_lora_weights.safetensors"), "pt") as file:
            keys = {k: list(file.get_slice(k).get_shape()) for k in sorted(file.keys())}
            assert all(file.get_tensor(k).float().equal(weight(k, keys[k])) for k in keys)
            metadata = file.metadata()
    with open(os.path.join(folder(), "lora_mmdit_tiny.json"), "w") as file:
        header = {"script": script(), "versions": json.loads(versions()), "metadata": metadata}
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in keys.items())
        file.write(f'{json.dumps(header)[:-1]},\n"keys": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
