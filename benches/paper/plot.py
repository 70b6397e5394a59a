"""A line chart with bars of deviation, as SVG."""

COLOURS = ["#1b6ca8", "#8e6bbf", "#c0392b", "#2e8b57", "#444444"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 120, 20, 50


def lines(path, label, ticks, series, about):
    """`series`: by name a mean and a deviation for each tick."""
    spans = [(m - d, m + d) for points in series.values() for m, d in points]
    low, high = min(a for a, _ in spans), max(b for _, b in spans)
    room = 0.05 * (high - low)
    low, high = low - room, high + room
    x = lambda i: LEFT + i * (WIDTH - LEFT - RIGHT) / max(len(ticks) - 1, 1)
    y = lambda v: TOP + (high - v) / (high - low) * (HEIGHT - TOP - BOTTOM)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="14">{about}</text>',
    ]
    for k in range(5):
        v = low + (high - low) * (k + 0.5) / 5
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>')
    for i, tick in enumerate(ticks):
        out.append(f'<text x="{x(i):.1f}" y="{HEIGHT - 30}" text-anchor="middle">{tick}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    taken = []
    for (name, points), colour in zip(series.items(), COLOURS):
        line = " ".join(f"{x(i):.1f},{y(m):.1f}" for i, (m, _) in enumerate(points))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for i, (m, d) in enumerate(points):
            out.append(f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{y(m - d):.1f}" y2="{y(m + d):.1f}" stroke="{colour}"/>')
        at = y(points[-1][0]) + 4
        while any(abs(at - other) < 12 for other in taken):
            at += 12
        taken.append(at)
        out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{at:.1f}" fill="{colour}">{name}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")
