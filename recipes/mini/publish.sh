#!/bin/sh
# Publishes a leg's result as models/mini: weights in 16 bit, and beside them the records of the legs that made them.
#
#     recipes/mini/publish.sh target/release/reclair joint-2 vae joint-1 joint-2
set -eu
cd "$(dirname "$0")/../.."
reclair=$1 leg=$2
shift 2
"$reclair" convert "runs/mini-$leg/prior" -o models/mini/prior --dtype f16
"$reclair" convert "runs/mini-$leg/adapter" -o models/mini/adapter --dtype f16
for run; do
    to=models/mini/runs/$run
    mkdir -p "$to"
    cp "runs/mini-$run/config.resolved.toml" "runs/mini-$run/run.json" "$to/"
    gzip -9nc "runs/mini-$run/log.jsonl" > "$to/log.jsonl.gz"
done
