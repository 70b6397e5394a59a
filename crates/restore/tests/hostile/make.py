"""Writes loras/ and adapters/: LoRA files and adapter folders that want to do harm. Needs nothing but Python.

All are of SDXL's names and shapes, and wrong in the way their name says.
"""

import json
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
HUGE = 1 << 40
TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = f"unet.{TO_Q}.lora_A.weight", f"unet.{TO_Q}.lora_B.weight"
GOOD = {A: [1, 1280], B: [1280, 1]}
CONFIG = dict(_class_name="UnetRestorationAdapter", block="D3", after=[0, 5], lq_channels=4, d_emb=1280, groups=32)
WEIGHTS = "restoration_adapter/diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"


def safetensors(shapes, metadata=None, dtype="F16", lie=None):
    """A file of zeros; `lie` changes the header's text."""
    header, at, width = {}, 0, {"F16": 2, "F32": 4, "F8_E4M3": 1, "I64": 8}[dtype]
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, shape in shapes.items():
        size = width
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header)
    text = (lie(text) if lie else text).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def put(path, contents):
    path = f"{HERE}/{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(contents if isinstance(contents, bytes) else json.dumps(contents).encode())


def about(alpha, **more):
    return {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.lora_alpha": alpha} | more)}


def loras():
    lora = lambda name, contents: put(f"loras/{name}.safetensors", contents)
    good = safetensors(GOOD)
    lora("empty", b"")
    lora("truncated_header", good[:100])
    lora("truncated_data", good[:-100])
    lora("pickle", b"PK\x03\x04" + bytes(60))
    lora("shape_of_terabytes", safetensors(GOOD, lie=lambda t: t.replace("[1, 1280]", f"[{HUGE}, 1280]")))
    lora("rank_of_nothing", safetensors({A: [0, 1280], B: [1280, 0]}))
    lora("ranks_that_differ", safetensors({A: [1, 1280], B: [1280, 2]}))
    lora("rank_that_is_huge", safetensors({A: [HUGE, 0], B: [0, HUGE]}))
    lora("three_sides", safetensors({A: [1, 1280, 1], B: [1280, 1]}))
    lora("scalars", safetensors({A: [], B: []}))
    lora("another_width", safetensors({A: [1, 640], B: [640, 1]}))
    lora("half", safetensors({A: [1, 1280]}))
    lora("half_of_a_text_encoder", safetensors({"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": [1, 768]}))
    lora("text_encoder_of_another_width", safetensors({f"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_{m}.weight": [1, 1] for m in "AB"}))
    lora("type_F8", safetensors(GOOD, dtype="F8_E4M3"))
    lora("type_I64", safetensors(GOOD, dtype="I64"))
    lora("one_module_twice", safetensors(GOOD | {k.replace("unet.", "diffusion_model."): v for k, v in GOOD.items()}))
    lora("nobodys", safetensors({f"nobody.{i}.lora_A.weight": [1, 1] for i in range(50)}))
    lora("nobodys_long_names", safetensors({"n" * 3000 + f"{i}.lora_A.weight": [1, 1] for i in range(3)}))
    lora("names_of_many_lines", safetensors({f"\n{i}\n\x1b[31m.lora_A.weight": [1, 1] for i in range(3)}))
    lora("alpha_of_two", safetensors(GOOD | {f"unet.{TO_Q}.alpha": [2]}))
    lora("dora", safetensors(GOOD | {f"unet.{TO_Q}.dora_scale": [1280, 1]}))
    lora("loha", safetensors({f"unet.{TO_Q}.hada_w1_a": [1280, 1]}))
    lora("about_no_json", safetensors(GOOD, {"lora_adapter_metadata": "{"}))
    lora("about_nested_too_deep", safetensors(GOOD, {"lora_adapter_metadata": '{"a":' * 2_000}))
    lora("about_alpha_word", safetensors(GOOD, about("w" * 5000)))
    lora("about_alpha_beyond_f64", safetensors(GOOD, {"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'}))
    lora("about_pattern_list", safetensors(GOOD, about(1, **{"unet.alpha_pattern": [1]})))
    lora("about_pattern_expression", safetensors(GOOD, about(1, **{"unet.alpha_pattern": {"(a+)+$" * 500: 1}})))


def adapters():
    def adapter(name, config=CONFIG, weights=None, **files):
        weights = safetensors({"a": [1]}) if weights is None else weights
        put(f"adapters/{name}/restoration_adapter/config.json", config)
        put(f"adapters/{name}/{WEIGHTS}", weights)
        for file, contents in files.items():
            put(f"adapters/{name}/{file.replace('__', '/').replace('_json', '.json')}", contents)

    change = lambda **more: CONFIG | more
    adapter("config_empty", b"")
    adapter("config_truncated", json.dumps(CONFIG).encode()[:-9])
    adapter("config_list", [CONFIG])
    adapter("config_nested_too_deep", b'{"after":' * 2_000)
    adapter("config_class_long", change(_class_name="w" * 5000))
    adapter("config_key_long", change(**{"k" * 5000: 1}))
    adapter("config_block_unknown", change(block="D9"))
    adapter("config_after_beyond", change(after=[0, 99]))
    adapter("config_after_twice", change(after=[1, 1]))
    adapter("config_after_64_bits", change(after=[2**64 - 1]))
    adapter("config_after_many", change(after=list(range(20_000))))
    adapter("config_after_negative", change(after=[-1]))
    adapter("config_channels_huge", change(lq_channels=HUGE))
    adapter("config_embedding_huge", change(d_emb=HUGE))
    adapter("config_groups_zero", change(groups=0))
    adapter("config_groups_huge", change(groups=HUGE))
    adapter("config_of_a_transformer", dict(_class_name="DitRestorationAdapter", after=[0], width=HUGE))
    adapter("config_controlnet_huge", dict(_class_name="UnetControlNet", lq_channels=HUGE))
    adapter("weights_empty", weights=b"")
    adapter("weights_truncated", weights=safetensors({"a": [64]})[:-3])
    adapter("weights_pickle", weights=b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    adapter("weights_of_terabytes", weights=safetensors({"a": [1]}, lie=lambda t: t.replace("[1]", f"[{HUGE}]")))
    adapter("weights_of_another", weights=safetensors({"adapters.0.zero_linear.weight": [1, 1]}))
    adapter("weights_named_in_lines", weights=safetensors({"\n" * 2000: [1]}))
    put("adapters/weights_missing/restoration_adapter/config.json", CONFIG)
    put(f"adapters/config_missing/{WEIGHTS}", safetensors({"a": [1]}))
    for name, contents in {
        "lora_empty": b"",
        "lora_truncated": safetensors(GOOD)[:-3],
        "lora_of_nothing": safetensors({"a": [1]}),
        "lora_rank_zero": safetensors({A: [0, 1280], B: [1280, 0]}),
        "lora_three_sides": safetensors({A: [1, 1280, 1], B: [1280, 1]}),
        "lora_about_no_json": safetensors(GOOD, {"lora_adapter_metadata": "["}),
        "lora_about_alpha_word": safetensors(GOOD, about("w" * 5000)),
        "lora_about_patterns": safetensors(GOOD, about(1, **{"unet.alpha_pattern": {"to_q": 2}})),
    }.items():
        put(f"adapters/{name}/{LORA}", contents)


for folder in ["loras", "adapters"]:
    shutil.rmtree(f"{HERE}/{folder}", ignore_errors=True)
loras()
adapters()
