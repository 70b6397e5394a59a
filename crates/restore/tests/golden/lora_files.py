"""Golden of LoRA files in the forms of different trainers, and of the weights that diffusers makes of them.

`<form>:<key>` are the tensors of a file. `fused:<name>` and `fused_alpha:<name>` are weights of the tiny U-Net after diffusers has loaded
and fused the file, without and with alphas; `sd3:<name>` those of a tiny SD3 transformer whose original, fused weights were changed
before diffusers converted them. `sd3_diffusers` and `sd3_peft` are what diffusers' pipeline and PEFT themselves save of one adapter on that transformer,
whose ranks and alphas differ by module; `sd3_merged:<name>` are its weights after PEFT has merged it. Bare weights by the formula under
their own names.
"""

import json
import os
import sys
import tempfile

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../priors/tests/golden"))

from formula import weight
from golden import config_of, save
from single_file import SMALL_SD3, SMALL_UNET, transformer_original, unet_original

torch.set_num_threads(1)
R, ALPHA = 2, 3.0
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
MODULES = [
    f"{ATTENTION}.attn1.to_q",
    f"{ATTENTION}.attn1.to_out.0",
    f"{ATTENTION}.attn2.to_k",
    f"{ATTENTION}.ff.net.0.proj",
    f"{ATTENTION}.ff.net.2",
    "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.transformer_blocks.1.attn1.to_v",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_q",
    "up_blocks.0.upsamplers.0.conv",
    "down_blocks.0.downsamplers.0.conv",
    "mid_block.resnets.1.conv2",
    "up_blocks.1.resnets.1.conv_shortcut",
    "down_blocks.2.resnets.0.time_emb_proj",
]


def matrices(state, form="plain"):
    """A and B of every module, by the formula."""
    out = {}
    for module in MODULES:
        shape = state[module + ".weight"].shape
        a = weight(f"{form}.{module}.a", (R, *shape[1:]))
        b = weight(f"{form}.{module}.b", (shape[0], R) + (1,) * (len(shape) - 2))
        out[module] = a, b
    return out


def original(module, state):
    """Stability's name of a module."""
    (name,) = unet_original({module + ".weight": state[module + ".weight"]}, SMALL_UNET)
    return name.removeprefix("model.diffusion_model.").removesuffix(".weight")


def fused(state, file):
    """The changed weights after diffusers has loaded and fused a file."""
    net = UNet2DConditionModel(**SMALL_UNET)
    net.load_state_dict(state)
    converted, alphas = StableDiffusionXLPipeline.lora_state_dict({k: v.clone() for k, v in file.items()}, unet_config=net.config)
    net.load_lora_adapter(converted, prefix="unet", network_alphas=alphas)
    net.fuse_lora()
    net.unload_lora()
    after = net.state_dict()
    changed = {k: v for k, v in after.items() if not v.equal(state[k])}
    assert sorted(changed) == sorted(m + ".weight" for m in MODULES), set(changed) ^ {m + ".weight" for m in MODULES}
    return changed


def unet_forms():
    state = {k: weight(k, v.shape) for k, v in UNet2DConditionModel(**SMALL_UNET).state_dict().items()}
    both = matrices(state)
    forms = {name: {} for name in ["kohya", "kohya_diffusers", "diffusers", "diffusers_old", "diffusers_processor", "peft", "comfyui"]}
    for module, (a, b) in both.items():
        sgm = original(module, state)
        alpha = torch.tensor(ALPHA)
        for form, name in [("kohya", sgm), ("kohya_diffusers", module)]:
            name = "lora_unet_" + name.replace(".", "_")
            forms[form] |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": alpha}
        forms["diffusers"] |= {f"unet.{module}.lora_A.weight": a, f"unet.{module}.lora_B.weight": b}
        forms["diffusers_old"] |= {f"unet.{module}.lora.down.weight": a, f"unet.{module}.lora.up.weight": b}
        if ".attn" in module:
            old = module.replace("attn1", "attn1.processor").replace("attn2", "attn2.processor").removesuffix(".0")
            forms["diffusers_processor"] |= {f"unet.{old}_lora.down.weight": a, f"unet.{old}_lora.up.weight": b}
        else:
            forms["diffusers_processor"] |= {f"unet.{module}.lora.down.weight": a, f"unet.{module}.lora.up.weight": b}
        forms["peft"] |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        forms["comfyui"] |= {f"diffusion_model.{sgm}.lora_down.weight": a, f"diffusion_model.{sgm}.lora_up.weight": b}
    plain, alpha = fused(state, forms["diffusers"]), fused(state, forms["kohya"])
    for form in ["diffusers_old", "diffusers_processor"]:
        assert all(v.equal(plain[k]) for k, v in fused(state, forms[form]).items()), form
    assert all(v.equal(alpha[k]) for k, v in fused(state, forms["kohya_diffusers"]).items())
    encoder = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    forms["kohya"] |= {f"{encoder}.lora_down.weight": torch.ones(R, 4), f"{encoder}.lora_up.weight": torch.ones(4, R), f"{encoder}.alpha": torch.tensor(1.0)}
    return forms, plain, alpha


def in_order(text):
    """The configuration with its set of modules sorted, so that two runs are equal."""
    about = json.loads(text)
    return json.dumps({k: sorted(v) if k.endswith("target_modules") else v for k, v in about.items()})


def saved_by_diffusers(net, pipeline, part):
    """What the pipeline writes of a network's adapter: tensors and the adapter's entry of the header."""
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(net), f"{part}_lora_adapter_metadata": net.peft_config["default"].to_dict()}
    with tempfile.TemporaryDirectory() as place:
        pipeline.save_lora_weights(place, **layers)
        path = os.path.join(place, "pytorch_lora_weights.safetensors")
        with safe_open(path, "pt") as file:
            return load_file(path), in_order(file.metadata()["lora_adapter_metadata"])


def saved_by_peft(net):
    """What PEFT writes of an adapter: tensors and adapter_config.json."""
    with tempfile.TemporaryDirectory() as place:
        net.save_pretrained(place)
        with open(os.path.join(place, "adapter_config.json")) as file:
            return load_file(os.path.join(place, "adapter_model.safetensors")), in_order(file.read())


def unet_names_judged(forms):
    """The forms of diffusers and PEFT have the keys and shapes that diffusers and PEFT write."""
    shapes = lambda file: {k: v.shape for k, v in file.items()}
    config = lambda: LoraConfig(r=R, target_modules=MODULES, init_lora_weights=False)
    net = UNet2DConditionModel(**SMALL_UNET)
    net.add_adapter(config())
    assert shapes(saved_by_diffusers(net, StableDiffusionXLPipeline, "unet")[0]) == shapes(forms["diffusers"])
    net = get_peft_model(UNet2DConditionModel(**SMALL_UNET), config())
    assert shapes(saved_by_peft(net)[0]) == shapes(forms["peft"])


SD3_MODULES = [f"transformer_blocks.{i}.attn.{p}" for i in [0, 2] for p in ["to_q", "to_k", "to_v", "to_out.0"]] + [
    "transformer_blocks.1.attn2.to_v",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.0.norm1.linear",
    "transformer_blocks.0.ff.net.2",
    "norm_out.linear",
    "proj_out",
]


def sd3_adapters():
    """One adapter as diffusers and PEFT save it, what they say of its ranks and alphas, and the weights that PEFT merges."""
    patterns = dict(rank_pattern={"attn2.to_v": 3}, alpha_pattern={"attn.to_q": 5, "transformer_blocks.0.ff.net.2": 1})
    config = lambda: LoraConfig(r=R, lora_alpha=ALPHA, target_modules=SD3_MODULES, init_lora_weights=False, **patterns)
    files, told, merged = {}, {}, []

    def filled(net):
        with torch.no_grad():
            for name, p in net.named_parameters():
                name = name.removeprefix("base_model.model.")
                p.copy_(weight(name.replace(".base_layer.", ".").replace(".default.", "."), p.shape))
        return net

    net = SD3Transformer2DModel(**SMALL_SD3)
    net.add_adapter(config())
    files["sd3_diffusers"], told["sd3_diffusers"] = saved_by_diffusers(filled(net), StableDiffusion3Pipeline, "transformer")
    net.fuse_lora()
    net.unload_lora()
    merged.append(net.state_dict())
    net = filled(get_peft_model(SD3Transformer2DModel(**SMALL_SD3), config()))
    files["sd3_peft"], told["sd3_peft"] = saved_by_peft(net)
    merged.append(net.merge_and_unload().state_dict())
    before = {k: weight(k, v.shape) for k, v in merged[0].items()}
    changed = [{k: v for k, v in state.items() if not v.equal(before[k]) and "pos_embed.pos_embed" not in k} for state in merged]
    assert sorted(changed[0]) == sorted(m + ".weight" for m in SD3_MODULES), sorted(changed[0])
    assert sorted(changed[0]) == sorted(changed[1]) and all(v.equal(changed[1][k]) for k, v in changed[0].items())
    return files, told, changed[1]


def sd3_forms():
    """Updates of the fused projections and others, applied to the original weights and converted by diffusers."""
    net = SD3Transformer2DModel(**SMALL_SD3)
    state = {k: weight(k, v.shape) for k, v in net.state_dict().items()}
    base = transformer_original(state, net.config)
    file, comfyui = {}, {}
    modules = [
        "joint_blocks.0.x_block.attn.qkv",
        "joint_blocks.1.x_block.attn2.qkv",
        "joint_blocks.2.context_block.attn.qkv",
        "joint_blocks.0.x_block.attn.proj",
        "joint_blocks.1.context_block.mlp.fc1",
        "joint_blocks.2.context_block.adaLN_modulation.1",
        "final_layer.adaLN_modulation.1",
    ]
    for module in modules:
        key = f"model.diffusion_model.{module}.weight"
        d_out, d_in = base[key].shape
        a, b = weight(f"{module}.a", (R, d_in)), weight(f"{module}.b", (d_out, R))
        name = "lora_unet_" + module.replace(".", "_")
        file |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(ALPHA)}
        comfyui |= {f"diffusion_model.{module}.lora_A.weight": a, f"diffusion_model.{module}.lora_B.weight": b, f"diffusion_model.{module}.alpha": torch.tensor(ALPHA)}
        base[key] = base[key] + (ALPHA / R) * (b.double() @ a.double()).float()
    after = convert_sd3_transformer_checkpoint_to_diffusers(dict(base))
    changed = {k: v for k, v in after.items() if not v.equal(state[k])}
    assert len(changed) == 9 + 4, sorted(changed)
    return {"sd3_kohya": file, "sd3_comfyui": comfyui}, changed, config_of(net)


def main():
    forms, plain, alpha = unet_forms()
    unet_names_judged(forms)
    sd3, changed, sd3_config = sd3_forms()
    adapters, told, merged = sd3_adapters()
    tensors = {f"{form}:{k}": v for form, file in (forms | sd3 | adapters).items() for k, v in file.items()}
    tensors |= {f"fused:{k}": v for k, v in plain.items()} | {f"fused_alpha:{k}": v for k, v in alpha.items()}
    tensors |= {f"sd3:{k}": v for k, v in changed.items()} | {f"sd3_merged:{k}": v for k, v in merged.items()}
    config = config_of(UNet2DConditionModel(**SMALL_UNET))
    note = f"LoRA of rank {R}; alpha {ALPHA} in kohya's form and in SD3's, the rank elsewhere; what diffusers and PEFT tell of SD3's stands beside. See the script."
    save("lora_files", tensors, config, note, sd3_config=json.dumps(sd3_config), **told)


if __name__ == "__main__":
    main()
