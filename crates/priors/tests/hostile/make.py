"""Writes files/, configs/, indexes/ and tokenizers/: files that want to do harm. Needs nothing but Python.

Each file of files/ is wrong in the way its name says, and `opens_` ones only when a parameter is wanted of them. Each file of
configs/ is a real configuration (src/known) with one value changed; the part before the first dot says whose. Each folder of indexes/ is
a network's, with an index of shards and what shards there are. Each file of tokenizers/ is read as the part before its first dot says.
"""

import json
import os
import shutil
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
KNOWN = f"{HERE}/../../src/known"
HUGE = 1 << 40


def write(name, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else header.encode()
    with open(f"{HERE}/files/{name}.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header) if length is None else length) + header + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def one(**changes):
    return json.dumps({"a": entry(**changes)})


def raw(name, contents):
    with open(f"{HERE}/files/{name}", "wb") as file:
        file.write(contents)


def files():
    raw("empty.safetensors", b"")
    raw("shorter_than_a_length.safetensors", b"\x08\0\0")
    write("header_of_nothing", "", length=0)
    write("header_of_2_to_the_64", one(), bytes(8), length=2**64 - 1)
    write("header_beyond_the_file", one(), bytes(8), length=HUGE)
    write("header_one_byte_beyond", one(), b"", length=len(one()) + 1)
    write("truncated_header", one()[:-9], length=len(one()))
    write("truncated_data", one(), bytes(7))
    write("more_data_than_said", one(), bytes(9))
    write("no_json", "[1,2")
    write("more_than_json", "{}x")
    write("array_for_an_object", "[]")
    write("nested_too_deep", '{"a":' * 2_000)
    write("no_utf8", b'{"\xff\xfe":1}')
    write("shape_beyond_64_bits", one(shape=(2**32, 2**32, 4)), bytes(8))
    write("shape_of_terabytes", one(shape=(HUGE,), offsets=(0, 4 * HUGE)), bytes(8))
    write("shape_negative", one(shape=(-2,)), bytes(8))
    write("shape_fractional", one(shape=(1.5,)), bytes(8))
    write("shape_and_bytes_differ", one(shape=(3,)), bytes(8))
    write("offsets_backwards", one(offsets=(8, 0)), bytes(8))
    write("offsets_beyond_the_file", one(offsets=(0, HUGE)), bytes(8))
    write("offsets_of_2_to_the_64", one(offsets=(2**64 - 8, 2**64 - 1)), bytes(8))
    write("overlap", json.dumps({"a": entry(), "b": entry(offsets=(4, 12))}), bytes(12))
    write("same_bytes_twice", json.dumps({"a": entry(), "b": entry()}), bytes(8))
    write("hole", json.dumps({"a": entry(), "b": entry(shape=(1,), offsets=(12, 16))}), bytes(16))
    write("type_unknown", one(dtype="F31"), bytes(8))
    write("type_of_another_size", one(dtype="F64"), bytes(8))
    write("type_no_word", '{"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}}', bytes(8))
    write("metadata_no_words", '{"__metadata__":{"a":[1]},' + one()[1:], bytes(8))
    raw("pickle_of_torch.safetensors", b"PK\x03\x04" + bytes(60))
    raw("pickle_of_old_torch.safetensors", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
    for dtype, size in [("I64", 8), ("U8", 1), ("F8_E4M3", 1), ("BOOL", 1)]:
        write(f"opens_{dtype}", one(dtype=dtype, offsets=(0, 2 * size)), bytes(2 * size))
    write("opens_F16_of_another_shape", one(dtype="F16", shape=(4,)), bytes(8))


def configs():
    def change(part, file, key, value, label=None):
        with open(f"{KNOWN}/{file}.json") as known:
            config = json.load(known)
        config[key] = value
        label = label or (value if isinstance(value, int) else "list")
        with open(f"{HERE}/configs/{part}.{key}.{label}.json", "w") as file:
            json.dump(config, file, indent=1)

    for key, value, label in [
        ("block_out_channels", [HUGE, 640, 1280], "huge"),
        ("block_out_channels", [], "none"),
        ("cross_attention_dim", HUGE, "huge"),
        ("layers_per_block", HUGE, "huge"),
        ("transformer_layers_per_block", [1, HUGE, 10], "huge"),
        ("attention_head_dim", [0, 0, 0], "zero"),
        ("in_channels", 2**64 - 1, "64_bits"),
        ("in_channels", -4, "negative"),
        ("norm_num_groups", 0, "zero"),
        ("norm_num_groups", "many", "word"),
        ("norm_eps", 0, "zero"),
        ("norm_eps", -1e-5, "negative"),
        ("norm_eps", 1e300, "huge"),
    ]:
        change("unet", "sdxl/unet", key, value, label)
    for key, value, label in [
        ("block_out_channels", [HUGE, HUGE], "huge"),
        ("block_out_channels", [0, 0], "zero"),
        ("layers_per_block", HUGE, "huge"),
        ("latent_channels", HUGE, "huge"),
        ("latent_channels", 0, "zero"),
        ("patch_size", 2**33, "huge"),
        ("scaling_factor", 0, "zero"),
        ("scaling_factor", -0.13, "negative"),
        ("scaling_factor", 1e300, "huge"),
        ("shift_factor", 1e300, "huge"),
        ("shift_factor", "0.06", "word"),
    ]:
        change("vae", "sdxl/vae", key, value, label)
    for key in ["num_layers", "num_attention_heads", "pos_embed_max_size", "patch_size"]:
        change("transformer", "sd3/transformer", key, HUGE, "huge")
        change("transformer", "sd3/transformer", key, 0, "zero")
    for key in ["num_layers", "d_model", "d_ff", "vocab_size"]:
        change("text_encoder_3", "sd3/text_encoder_3", key, HUGE, "huge")
    change("text_encoder_3", "sd3/text_encoder_3", "layer_norm_epsilon", 0, "zero")
    for key in ["num_hidden_layers", "hidden_size", "vocab_size"]:
        change("text_encoder", "sd3/text_encoder", key, HUGE, "huge")
    change("text_encoder", "sd3/text_encoder", "num_attention_heads", 0, "zero")
    change("text_encoder", "sd3/text_encoder", "layer_norm_eps", -1e-5, "negative")
    for key, value, label in [
        ("_class_name", "EDMEulerScheduler", "edm"),
        ("_class_name", 7, "number"),
        ("num_train_timesteps", 10**18, "huge"),
        ("num_train_timesteps", 0, "zero"),
        ("num_train_timesteps", -1, "negative"),
        ("num_train_timesteps", 1000.5, "fractional"),
        ("num_train_timesteps", "1000", "word"),
        ("beta_start", 0, "zero"),
        ("beta_start", -0.1, "negative"),
        ("beta_end", 1, "one"),
        ("beta_end", 0.99, "nothing_left"),
        ("beta_end", "0.012", "word"),
        ("beta_schedule", "linear", "linear"),
        ("prediction_type", "flow", "flow"),
        ("timestep_spacing", "w" * 5000, "long"),
        ("steps_offset", 10**18, "huge"),
        ("set_alpha_to_one", "no", "word"),
        ("rescale_betas_zero_snr", True, "true"),
        ("use_flow_sigmas", True, "true"),
        ("clip_sample", True, "true"),
        ("thresholding", True, "true"),
        ("thresholding", "w" * 5000, "long"),
        ("variance_type", "learned_range", "learned"),
    ]:
        change("scheduler", "sdxl/scheduler", key, value, label)
    for key, value, label in [
        ("num_train_timesteps", 10**18, "flow_huge"),
        ("shift", 0, "zero"),
        ("shift", -3.0, "negative"),
        ("shift", 1e300, "huge"),
        ("shift", "3", "word"),
        ("shift", None, "null"),
        ("shift_terminal", 0.1, "number"),
        ("invert_sigmas", True, "true"),
        ("use_dynamic_shifting", True, "true"),
        ("stochastic_sampling", True, "true"),
        ("timestep_spacing", "legacy", "flow_legacy"),
    ]:
        change("scheduler", "sd3/scheduler", key, value, label)


def indexes():
    name = "diffusion_pytorch_model.safetensors.index.json"

    def put(label, index, **shards):
        place = f"{HERE}/indexes/{label}"
        os.makedirs(place)
        with open(f"{place}/{name}", "w") as file:
            file.write(index if isinstance(index, str) else json.dumps(index))
        for shard, contents in shards.items():
            with open(f"{place}/{shard}.safetensors", "wb") as file:
                file.write(contents)

    header = one().encode()
    good = struct.pack("<Q", len(header)) + header + bytes(8)
    to = lambda shard, tensor="a": {"weight_map": {tensor: shard}}
    put("outside_above", to("../../files/opens_F16_of_another_shape.safetensors"))
    put("outside_absolute", to("/etc/passwd"))
    put("outside_absolute_weights", to("/tmp/x.safetensors"))
    put("outside_backslash", to("..\\..\\x.safetensors"))
    put("outside_parent_itself", to(".."))
    put("missing", to("gone.safetensors"))
    put("missing_of_a_long_name", to("g" * 5000 + ".safetensors"))
    put("itself", to(name))
    put("nameless", to(""))
    put("pickle_by_name", to("one.bin"))
    put("pickle", to("one.safetensors"), one=b"PK\x03\x04" + bytes(60))
    put("truncated_shard", to("one.safetensors"), one=good[:-3])
    put("lying", to("one.safetensors", "b"), one=good)
    put("lying_in_many_words", to("one.safetensors", "b\n" * 3000), one=good)
    put("of_nothing", {"weight_map": {}})
    put("without_a_map", {"metadata": {"total_size": 8}})
    put("map_a_list", {"weight_map": ["one.safetensors"]})
    put("map_of_numbers", {"weight_map": {"a": 7}})
    put("truncated", json.dumps(to("one.safetensors"))[:-4], one=good)
    put("empty", "")
    put("nested_too_deep", '{"weight_map":' * 2_000)


def tokenizers():
    def put(name, contents):
        with open(f"{HERE}/tokenizers/{name}", "wb") as file:
            file.write(contents if isinstance(contents, bytes) else json.dumps(contents).encode())

    end, start = "<|endoftext|>", "<|startoftext|>"
    vocab = {start: 0, end: 1, "a": 2, "b": 3, "ab</w>": 4, "b</w>": 5}
    merges = ["a b</w>"]
    put("vocab.truncated.json", json.dumps(vocab).encode()[:-3])
    put("vocab.list.json", list(vocab))
    put("vocab.no_end.json", {k: v for k, v in vocab.items() if k != end})
    put("vocab.id_negative.json", vocab | {end: -1})
    put("vocab.id_beyond_32_bits.json", vocab | {end: 2**40})
    put("vocab.id_beyond_the_encoder.json", vocab | {"c": 2**32 - 1})
    put("vocab.id_word.json", vocab | {"a": "2"})
    put("vocab.nested_too_deep.json", b'{"a":' * 2_000)
    put("vocab.no_utf8.json", b'{"\xff": 1}')
    put("vocab.empty.json", b"")
    put("merges.no_utf8.txt", b"a \xff\n")
    put("merges.no_pair.txt", b"ab\n")
    put("merges.three.txt", b"a b</w> c\n")
    put("merges.unknown.txt", b"q r\n")
    put("merges.long_word.txt", b"q" * 50_000 + b" r\n")
    whole = {"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}}
    put("clip.truncated.json", json.dumps(whole).encode()[:-5])
    put("clip.another_kind.json", {"model": whole["model"] | {"type": "Unigram"}})
    put("clip.merge_of_three.json", {"model": whole["model"] | {"merges": [["a", "b</w>", "c"]]}})
    put("clip.merges_word.json", {"model": whole["model"] | {"merges": "a b</w>"}})
    put("clip.merge_number.json", {"model": whole["model"] | {"merges": [7]}})
    put("clip.vocab_list.json", {"model": whole["model"] | {"vocab": [1]}})
    put("clip.no_model.json", {"version": "1.0"})
    t5 = {"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["</s>", 0.0], ["<pad>", 0.0]]}}
    put("t5.truncated.json", json.dumps(t5).encode()[:-5])
    put("t5.of_clip.json", whole)
    put("t5.no_end.json", t5 | {"model": t5["model"] | {"vocab": [["<unk>", 0.0], ["<pad>", 0.0]]}})
    put("t5.unknown_beyond.json", t5 | {"model": t5["model"] | {"unk_id": 10**12}})
    put("t5.score_word.json", t5 | {"model": t5["model"] | {"vocab": [["<unk>", "0"], ["</s>", 0.0]]}})
    put("t5.kind_of_nothing.json", t5 | {"model": t5["model"] | {"type": "w" * 5000}})
    put("t5.expression.json", t5 | {"normalizer": {"type": "Replace", "pattern": {"Regex": "(" * 500}, "content": ""}})
    put("t5.empty.json", b"")


for folder in ["files", "configs", "indexes", "tokenizers"]:
    shutil.rmtree(f"{HERE}/{folder}", ignore_errors=True)
    os.makedirs(f"{HERE}/{folder}")
files()
configs()
indexes()
tokenizers()
