"""Token ids that SD3-medium's own tokenizers give; the model's folder is the argument. Writes tokenizers_sd3.json."""

import json
import os
import sys

from transformers import CLIPTokenizer, T5TokenizerFast

from golden import folder, script, versions

PROMPTS = [
    "",
    "a photo of a cat",
    "A PHOTO of a Cat, 4k; it's the dog's 1024x768 -- f/2.8...",
    "  multiple   spaces\tand\n\nnewlines  ",
    "na\u00efve caf\u00e9 Z\u00fcrich \u00d8 \u0130stanbul \u1e9e \u03a9 \ufb01ne \u2160 \u00bd",
    "\u65e5\u672c\u8a9e \u5199\u771f, \u0440\u0443\u0441\u0441\u043a\u0438\u0439, \u0639\u0631\u0628\u064a",
    "emoji \U0001f600\u200d\U0001f525 ok\u00a0nbsp\u200bzero",
    "cinematic, highly detailed, taken using a Canon EOS R camera, hyper detailed photo-realistic maximum detail",
]
LENGTH = {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256}


def main():
    place = sys.argv[1]
    kinds = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer, "tokenizer_3": T5TokenizerFast}
    made = {name: kind.from_pretrained(os.path.join(place, name)) for name, kind in kinds.items()}
    cases = []
    for prompt in PROMPTS:
        ids = {name: t(prompt, max_length=LENGTH[name], truncation=True).input_ids for name, t in made.items()}
        cases.append({"prompt": prompt} | ids)
    header = {"script": script(), "versions": json.loads(versions()), "note": "Without padding."}
    with open(os.path.join(folder(), "tokenizers_sd3.json"), "w") as file:
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
        file.write(json.dumps(header)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
