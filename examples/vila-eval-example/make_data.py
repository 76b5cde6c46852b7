"""Draw the pictures of the benchmark and write their correct descriptions. Needs vila-train for the drawn world.

python examples/vila-eval-example/make_data.py
"""

import json
from pathlib import Path

from vila_train.tiny.world import make_sample
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.scenes import Scene

FOLDER = Path(__file__).parent / "src" / "vila_eval_example" / "data"
SAMPLES = (3, 6, 8, 9, 13, 16, 22, 86)
"""Indices in the test split. The embedded model gets one word of the last description wrong."""

rows: list[dict[str, object]] = []
for number, index in enumerate(SAMPLES, 1):
    sample = make_sample("test", "caption_things", index)
    (scene,) = (part for part in sample.prompt if isinstance(part, Scene))
    draw(scene, 96).save(FOLDER / f"scene-{number}.png", optimize=True)
    rows.append({"picture": f"scene-{number}.png", "description": sample.answer, "things": sample.answer.count("(")})
(FOLDER / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
