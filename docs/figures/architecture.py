"""Draws architecture.svg: the processes, and what each may reach. Run it to draw it again."""

from html import escape
from pathlib import Path

W, H = 128, 40
"""Width and height of a box."""
BOXES = {
    "client": (20, 150, "client", "#ffffff"),
    "api": (190, 150, "API", "#dbe9f6"),
    "beat": (190, 300, "beat", "#dbe9f6"),
    "postgres": (360, 40, "PostgreSQL", "#e6f2df"),
    "redis": (360, 225, "Redis", "#e6f2df"),
    "control": (550, 110, "control worker", "#dbe9f6"),
    "training": (550, 225, "training worker", "#dbe9f6"),
    "serving": (550, 330, "serving worker", "#dbe9f6"),
    "child": (740, 225, "training child", "#fbe8d3"),
    "host": (740, 330, "host of one model", "#fbe8d3"),
    "jail": (930, 225, "jail", "#f6dada"),
    "outside": (930, 110, "outside", "#ffffff"),
}
DATA = (190, 420, 868, H, "data and models folders: API, all workers, training child, host", "#e6f2df")
LINES = [
    ("client", "api", "HTTP", True),
    ("api", "postgres", "", False),
    ("api", "redis", "", True),
    ("beat", "redis", "doorbells", False),
    ("redis", "control", "", True),
    ("redis", "training", "", True),
    ("redis", "serving", "", True),
    ("control", "postgres", "", False),
    ("child", "jail", "code", False),
    ("control", "outside", "webhooks, judges, scoring services", False),
    ("control", "jail", "tries graders", False),
    ("child", "outside", "judges", False),
    ("training", "child", "socket", True),
    ("serving", "host", "socket", True),
]


def main() -> None:
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1080 480" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>Processes of the service and what each may reach</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        '<rect width="1080" height="480" fill="#ffffff"/>',
    ]
    parts += [line(*each) for each in LINES]
    # The training worker writes its jobs' rows; the line goes around the control worker.
    parts.append('<path d="M600 225V195H470V80" fill="none" stroke="#555" marker-end="url(#arrow)"/>')
    parts += [box(x, y, W, H, text, fill) for x, y, text, fill in BOXES.values()]
    parts.append(box(*DATA))
    parts.append("</svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


def box(x: int, y: int, width: int, height: int, text: str, fill: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="#555"/>'
        f'<text x="{x + width / 2}" y="{y + height / 2 + 4.5}" text-anchor="middle" fill="#111">{escape(text)}</text>'
    )


def line(source: str, target: str, text: str, both: bool) -> str:
    (x1, y1, *_), (x2, y2, *_) = BOXES[source], BOXES[target]
    # From the side that faces the other box.
    a = (x1 + (W if x2 > x1 else 0), y1 + H / 2) if x1 != x2 else (x1 + W / 2, y1)
    b = (x2 + (0 if x2 > x1 else W), y2 + H / 2) if x1 != x2 else (x2 + W / 2, y2 + H)
    start = ' marker-start="url(#arrow)"' if both else ""
    drawn = f'<path d="M{a[0]} {a[1]}L{b[0]} {b[1]}" stroke="#555"{start} marker-end="url(#arrow)"/>'
    if not text:
        return drawn
    x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2 - 6
    return f'{drawn}<text x="{x}" y="{y}" text-anchor="middle" fill="#555" font-size="11">{escape(text)}</text>'


if __name__ == "__main__":
    main()
