"""Tasks from drawn benchmarks and from rows with small images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from effllava_optuna.tasks import DataTask


def benchmark_task(drawn: Path, name: str, **more: Any) -> DataTask:
    sizes = {"proxy": 16, "validation": 8, "test": 20} | more
    return DataTask(name, str(drawn / name), **sizes)


def write_rows(where: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    file = where / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def rows_with_images(where: Path, count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(where / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"q {number}?", "answer": "yes"})
    return rows
