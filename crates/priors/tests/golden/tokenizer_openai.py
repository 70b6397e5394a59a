"""Golden of CLIP's own vocabulary: token ids by transformers. Run with the folder of the model's tokenizer (vocab.json, merges.txt)."""

import json
import os
import sys

from transformers import CLIPTokenizer

from golden import folder, script, versions

PROMPTS = [
    "",
    "hi there",
    "A photo of a cat, 8K ultra-realistic!",
    "low quality, low resolution, blurry, noisy, compressed",
    "it's we'll don't I'm they've",
    "  many   spaces\tand\nlines ",
    "ŽLUŤOUČKÝ kůň \u00e9 e\u0301",
    "写真 фото صورة",
    "1234 56.78 (((weighted:1.2))) [a|b]",
    "emoji 😀🎉 end",
    "antidisestablishmentarianism photorealistic bokeh",
    "!!! ... ??? -- ~~",
]


def main():
    tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1])
    cases = [{"prompt": p, "ids": tokenizer(p).input_ids} for p in PROMPTS]
    lines = ",\n".join(" " + json.dumps(case) for case in cases)
    with open(os.path.join(folder(), "tokenizer_openai.json"), "w") as file:
        file.write(f'{{"script": "{script()}", "versions": {versions()}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
