"""The benchmarks that cargo builds: built where they are not, and found."""

import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def benchmark(crate, name):
    """The program of benchmark `name` of a crate of the workspace."""
    command = ["cargo", "bench", "--workspace", "--profile", "release", "--bench", name, "--no-run", "--message-format=json"]
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in told.stdout.splitlines():
        made = json.loads(line) if line.startswith("{") else {}
        if made.get("executable") and os.path.dirname(made["manifest_path"]).endswith(f"crates/{crate}"):
            return made["executable"]
    sys.exit(f"{' '.join(command[:-1])} made no program of crates/{crate}")
