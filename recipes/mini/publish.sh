#!/bin/sh
# Publishes the prior of one leg and the adapter of another (or the same) as models/mini: weights in 16 bit, and beside
# them the records of the legs that made them.
#
#     recipes/mini/publish.sh target/release/reclair joint-8 adapter-2 joint-7 joint-8 adapter-2
set -eu
cd "$(dirname "$0")/../.."
reclair=$1 prior=$2 adapter=$3
shift 3
"$reclair" convert "runs/mini-$prior/prior" -o models/mini/prior --dtype f16
"$reclair" convert "runs/mini-$adapter/adapter" -o models/mini/adapter --dtype f16
# Under the name that it is embedded by, and the licence of its model card.
sed -i -e 's/"name": "prior"/"name": "mini"/' -e 's/"licence": null/"licence": "CC-BY-SA-4.0"/' models/mini/adapter/reclair.json
for run; do
    to=models/mini/runs/$run
    mkdir -p "$to"
    cp "runs/mini-$run/config.resolved.toml" "runs/mini-$run/run.json" "$to/"
    gzip -9nc "runs/mini-$run/log.jsonl" > "$to/log.jsonl.gz"
done
