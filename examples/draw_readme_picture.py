"""Draw the picture in the README: the bundled media, and what `vila-infer` prints for them.

    python examples/draw_readme_picture.py

The embedded model is asked for the answers at the time of drawing.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import vila_core as vila

MEDIA = Path(__file__).parent / "media"
OUT = Path(__file__).parent.parent / "docs" / "assets" / "vila-infer.png"
WIDTH, ROW, THUMBNAIL, MARGIN = 1440, 190, 150, 40
BACKGROUND, COMMAND, ANSWER, DIM = "#16202b", "#e8eef4", "#7fe0a8", "#8b9bab"


def thumbnails(name: str) -> list[Image.Image]:
    """Return a thumbnail of the picture, or of four frames of the video."""
    if name.endswith(".mp4"):
        frames = vila.Video(MEDIA / name).load(num_frames=4).frames
        return [frame.resize((THUMBNAIL // 2, THUMBNAIL // 2)) for frame in frames]
    return [Image.open(MEDIA / name).convert("RGB").resize((THUMBNAIL, THUMBNAIL))]


def main() -> None:
    """Ask every bundled question and draw questions and answers."""
    questions = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))
    model = vila.load("vila-tiny")
    font, small = ImageFont.load_default(26), ImageFont.load_default(21)
    sheet = Image.new("RGB", (WIDTH, ROW * len(questions) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for row, question in enumerate(questions):
        top = MARGIN + row * ROW
        media = [
            vila.Video(MEDIA / name) if name.endswith(".mp4") else vila.Image(MEDIA / name)
            for name in question["media"]
        ]
        answer = model.generate([*media, question["text"]])
        small_pictures = [picture for name in question["media"] for picture in thumbnails(name)]
        is_video = question["media"][0].endswith(".mp4")
        for index, picture in enumerate(small_pictures):
            column, line = (index % 2, index // 2) if is_video else (index, 0)
            sheet.paste(picture, (MARGIN + column * (picture.width + 6), top + line * (picture.height + 6)))
        left = MARGIN + 2 * THUMBNAIL + 50
        files = " ".join(f"examples/media/{name}" for name in question["media"])
        pen.text((left, top + 6), f"$ vila-infer --media {files}", fill=DIM, font=small)
        pen.text((left, top + 42), f'   --text "{question["text"]}"', fill=COMMAND, font=font)
        pen.text((left, top + 92), answer, fill=ANSWER, font=font)
    sheet.save(OUT, optimize=True)


if __name__ == "__main__":
    main()
