"""Golden of LoRA for text encoders in the forms of different trainers, and of the weights that diffusers makes of them.

`<form>:<key>` are the tensors of a file, with one module of the U-Net of lora_files.py. `fused.<encoder>:<name>` are weights of tiny
text encoders after diffusers' pipeline has loaded and fused the file, `fused_alpha.<encoder>:<name>` those with alphas. Bare weights by the
formula under their own names. `lora_t5` is the same for SD3's third encoder, of which diffusers loads no LoRA: PEFT merges it, and kohya's and
ComfyUI's keys are those of sd-scripts' `networks/lora_sd3.py` and of `comfy/lora.py`. Both other encoders are CLIPTextModelWithProjection: transformers 5 names CLIPTextModel's modules otherwise, and
diffusers then finds none of a file's.
"""

import json
import os
import sys

import torch
from diffusers import SD3Transformer2DModel, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

from formula import fill, weight
from golden import config_of, save
from single_file import SMALL_SD3, SMALL_UNET

torch.set_num_threads(1)
R, ALPHA = 2, 3.0
COMMON = dict(vocab_size=24, max_position_embeddings=6, num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu", eos_token_id=2)
WIDTHS = {"text_encoder": 8, "text_encoder_2": 12}
LAYER = "text_model.encoder.layers"
MODULES = [f"{LAYER}.0.self_attn.{p}_proj" for p in ["q", "k", "v", "out"]] + [f"{LAYER}.1.mlp.fc1", f"{LAYER}.1.mlp.fc2"]
OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
UNET = "mid_block.attentions.0.transformer_blocks.1.attn1.to_v"


def encoder(width):
    config = CLIPTextConfig(**COMMON, hidden_size=width, intermediate_size=2 * width, projection_dim=width)
    return fill(CLIPTextModelWithProjection(config)).eval()


def pipeline():
    net = UNet2DConditionModel(**SMALL_UNET)
    net.load_state_dict({k: weight(k, v.shape) for k, v in net.state_dict().items()})
    parts = {name: encoder(width) for name, width in WIDTHS.items()}
    return StableDiffusionXLPipeline(unet=net, vae=None, tokenizer=None, tokenizer_2=None, scheduler=None, **parts)


def fused(file):
    """The encoders' changed weights after diffusers has loaded and fused a file, given as tensors or as a path."""
    pipe = pipeline()
    before = {name: {k: v.clone() for k, v in getattr(pipe, name).state_dict().items()} for name in WIDTHS}
    pipe.load_lora_weights(file if isinstance(file, str) else {k: v.clone() for k, v in file.items()})
    pipe.fuse_lora(components=list(WIDTHS))
    pipe.unload_lora_weights()
    out = {}
    for name in WIDTHS:
        after = getattr(pipe, name).state_dict()
        changed = {k: v for k, v in after.items() if not v.equal(before[name][k])}
        assert sorted(changed) == sorted(m + ".weight" for m in MODULES), (name, sorted(changed))
        out |= {f"{name}:{k}": v for k, v in changed.items()}
    return out


def forms():
    """The same updates in each form."""
    forms = {form: {} for form in ["kohya", "diffusers", "diffusers_old", "comfyui"]}
    state = {name: encoder(width).state_dict() for name, width in WIDTHS.items()}
    state["unet"] = UNet2DConditionModel(**SMALL_UNET).state_dict()
    for i, name in enumerate(["text_encoder", "text_encoder_2", "unet"]):
        for module in [UNET] if name == "unet" else MODULES:
            out, width = state[name][module + ".weight"].shape
            a, b = weight(f"{name}.{module}.a", (R, width)), weight(f"{name}.{module}.b", (out, R))
            place = f"lora_te{i + 1}_" if i < 2 else "lora_unet_"
            kohya = place + module.replace(".", "_")
            forms["kohya"] |= {f"{kohya}.lora_down.weight": a, f"{kohya}.lora_up.weight": b, f"{kohya}.alpha": torch.tensor(ALPHA)}
            forms["diffusers"] |= {f"{name}.{module}.lora_A.weight": a, f"{name}.{module}.lora_B.weight": b}
            last = module.rsplit(".", 1)[-1]
            if last in OLD:
                # The oldest form calls the projections otherwise.
                old = f"{name}.{module.removesuffix(last)}{OLD[last]}_lora"
            else:
                old = f"{name}.{module}.lora" if name == "unet" else f"{name}.{module}.lora_linear_layer"
            forms["diffusers_old"] |= {f"{old}.down.weight": a, f"{old}.up.weight": b}
            comfy = ["text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.", "diffusion_model."][i]
            module = module if i < 2 else "middle_block.1.transformer_blocks.1.attn1.to_v"
            forms["comfyui"] |= {f"{comfy}{module}.lora_down.weight": a, f"{comfy}{module}.lora_up.weight": b}
    return forms


T5 = dict(vocab_size=24, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
T5_MODULES = [f"encoder.block.0.layer.0.SelfAttention.{p}" for p in "qkvo"] + [f"encoder.block.1.layer.1.DenseReluDense.{p}" for p in ["wi_0", "wi_1", "wo"]]


def t5():
    net = fill(T5EncoderModel(T5Config(**T5))).float()
    config, before = config_of(net), {k: v.clone() for k, v in net.state_dict().items()}
    net = get_peft_model(net, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=T5_MODULES, init_lora_weights=False))
    matrices = {name: p for name, p in net.named_parameters() if "lora_" in name}
    forms = {"kohya": {}, "diffusers": {}, "comfyui": {}}
    with torch.no_grad():
        for name, p in matrices.items():
            p.copy_(weight(name, p.shape))
            module, matrix = name.removeprefix("base_model.model.").removesuffix(".default.weight").rsplit(".", 1)
            old = {"lora_A": "lora_down", "lora_B": "lora_up"}[matrix]
            kohya, comfyui = "lora_te3_" + module.replace(".", "_"), "text_encoders.t5xxl.transformer." + module
            forms["kohya"] |= {f"{kohya}.{old}.weight": p.clone(), f"{kohya}.alpha": torch.tensor(ALPHA)}
            forms["diffusers"] |= {f"text_encoder_3.{module}.{matrix}.weight": p.clone(), f"text_encoder_3.{module}.alpha": torch.tensor(ALPHA)}
            forms["comfyui"] |= {f"{comfyui}.{old}.weight": p.clone(), f"{comfyui}.alpha": torch.tensor(ALPHA)}
    after = net.merge_and_unload().state_dict()
    changed = {k: v for k, v in after.items() if not v.equal(before[k])}
    assert sorted(changed) == sorted(m + ".weight" for m in T5_MODULES), sorted(changed)
    tensors = {f"{form}:{k}": v for form, file in forms.items() for k, v in file.items()}
    tensors |= {f"merged.text_encoder_3:{k}": v for k, v in changed.items()}
    configs = {"text_encoder_3": config, "transformer": config_of(SD3Transformer2DModel(**SMALL_SD3))}
    note = f"LoRA of rank {R} and alpha {ALPHA} for SD3's T5, and its weights after PEFT has merged it. See the script."
    save("lora_t5", tensors, json.loads(json.dumps(configs, default=str)), note)


def main():
    files = forms()
    plain, alpha = fused(files["diffusers"]), fused(files["kohya"])
    assert all(torch.allclose(v, plain[k]) for k, v in fused(files["diffusers_old"]).items())
    tensors = {f"{form}:{k}": v for form, file in files.items() for k, v in file.items()}
    tensors |= {f"fused.{k}": v for k, v in plain.items()} | {f"fused_alpha.{k}": v for k, v in alpha.items()}
    configs = {name: config_of(encoder(width)) for name, width in WIDTHS.items()}
    configs["unet"] = config_of(UNet2DConditionModel(**SMALL_UNET))
    note = f"LoRA of rank {R} for SDXL's text encoders; alpha {ALPHA} in kohya's form, the rank elsewhere. See the script."
    save("lora_text", tensors, json.loads(json.dumps(configs, default=str)), note)


if __name__ == "__main__":
    main()
    t5()
