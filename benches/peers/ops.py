"""Times single operations in reclair and in PyTorch, turn by turn, and prints the ratios.

    python3 benches/peers/ops.py [PART]

Needs PyTorch. Each side runs three times, in turn, and the best of each row counts. PyTorch gets the same inputs, threads and precision; where
reclair's row says bf16, PyTorch's tensors are bf16.
"""

import os
import re
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from programs import benchmark

PART = sys.argv[1] if len(sys.argv) > 1 else ""


def best(f):
    f()
    begin, times = time.perf_counter(), []
    while len(times) < 3 or (time.perf_counter() - begin < 0.3 and len(times) < 200):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def torch_op(name):
    """What the row's name says, done by PyTorch (or None), and its operations, or bytes of a norm."""
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    numbers = [int(n) for n in re.findall(r"\d+", re.sub(r" (f32|bf16|f16)$", "", name))]
    make = lambda *dims: torch.rand(*dims, dtype=dtype)
    if name.endswith(" f16"):
        return None, 0
    if name.startswith("matmul"):
        n = numbers[0]
        a, b = make(n, n), make(n, n)
        return lambda: a @ b, 2 * n**3
    if name.startswith("linear"):
        n, i, o = numbers
        x, w, b = make(n, i), make(o, i), make(o)
        return lambda: F.linear(x, w, b), 2 * n * i * o
    if name.startswith("conv training"):
        x, w = make(8, 64, 64, 64).requires_grad_(), make(64, 64, 3, 3).requires_grad_()
        step = torch.enable_grad()(lambda: F.conv2d(x, w, padding=1).sum().backward())
        return step, 3 * 2 * 9 * 8 * 64**4
    if name.startswith("conv"):
        k, _, i, o, size, stride = numbers
        x, w, b = make(1, i, size, size), make(o, i, k, k), make(o)
        run = lambda: F.conv2d(x, w, b, stride=stride, padding=k // 2)
        return run, 2 * k * k * i * o * (-(-size // stride)) ** 2
    if name.startswith("attention"):
        h, n, m, d = numbers
        q, k, v = make(1, h, n, d), make(1, h, m, d), make(1, h, m, d)
        return lambda: F.scaled_dot_product_attention(q, k, v), 4 * h * n * m * d
    if name.startswith("group norm"):
        _, c, size, _ = numbers
        x, w = make(1, c, size, size), make(c)
        return lambda: F.silu(F.group_norm(x, 32, w, w)), 8 * c * size**2
    n, d = numbers
    x, w = make(n, d), make(d)
    return lambda: F.layer_norm(x, (d,), w, w), 8 * n * d


def ours(command):
    rows, peak = {}, 0.0
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        if found := re.match(r"(\d+) threads, peak (\d+)", line):
            peak = float(found[1]) * float(found[2])
        elif found := re.match(r"(.+?)\s+([\d.]+) (GFLOP/s|GB/s)", line):
            rows[found[1]] = (float(found[2]), found[3])
    return rows, peak


def main():
    program = benchmark("kernels", "ops")
    torch.set_num_threads(os.cpu_count())
    mine, peers, peaks = {}, {}, []
    for _ in range(3):
        rows, peak = ours([program, PART] if PART else [program])
        peaks.append(peak)
        for name, (rate, unit) in rows.items():
            if name not in mine or rate > mine[name][0]:
                mine[name] = (rate, unit)
        with torch.no_grad():
            for name in rows:
                op, amount = torch_op(name)
                if op:
                    peers[name] = max(peers.get(name, 0.0), amount / best(op) / 1e9)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; FMA peak {max(peaks):.0f} GFLOP/s\n")
    print("| operation | reclair | of the peak | PyTorch | ratio |\n|---|---|---|---|---|")
    for name, (rate, unit) in mine.items():
        share = f"{rate / max(peaks):.2f}" if unit == "GFLOP/s" else ""
        if name in peers:
            theirs = peers[name]
            print(f"| {name} | {rate:.0f} {unit} | {share} | {theirs:.0f} | {rate / theirs:.2f} |")
        else:
            print(f"| {name} | {rate:.0f} {unit} | {share} | | |")


if __name__ == "__main__":
    main()
