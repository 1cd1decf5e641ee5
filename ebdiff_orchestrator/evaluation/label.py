"""What a FID is called: only 50,000 images and pytorch-fid's own network make it the number that papers print."""

from __future__ import annotations

from schemas.manifest import Evaluation

FULL_IMAGES = 50_000
# Of pytorch-fid's weights; the eight digits that it begins with stand in their file's name.
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def fid_label(evaluation: Evaluation) -> str:
    """The name to print beside the number: `FID-50k`, or `FID-1k (1,000 images; not comparable with FID-50k)`."""
    count = evaluation.num_images
    name = f"FID-{count / 1000:g}k" if count >= 1000 else f"FID-{count}"
    notes = []
    if count < FULL_IMAGES:
        notes.append(f"{count:,} images; not comparable with FID-50k")
    if evaluation.inception_sha256 != OFFICIAL_SHA256:
        notes.append(f"Inception weights {evaluation.inception_sha256[:8]} are not pytorch-fid's: not a published FID")
    return f"{name} ({'; '.join(notes)})" if notes else name
