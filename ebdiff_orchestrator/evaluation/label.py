"""What a FID is called: only 50,000 images and pytorch-fid's own network make it the number that papers print."""

from __future__ import annotations

from schemas.manifest import Evaluation

FULL_IMAGES = 50_000
OFFICIAL_SHA256 = "6726825d"  # how the digest of pytorch-fid's weights begins: it stands in their file's name


def fid_label(evaluation: Evaluation) -> str:
    """The name to print beside the number: `FID-50k`, or `FID-1k (1,000 images; not comparable with FID-50k)`."""
    count = evaluation.num_images
    name = f"FID-{count / 1000:g}k" if count >= 1000 else f"FID-{count}"
    notes = []
    if count < FULL_IMAGES:
        notes.append(f"{count:,} images; not comparable with FID-50k")
    if not evaluation.inception_sha256.startswith(OFFICIAL_SHA256):
        notes.append(f"Inception weights {evaluation.inception_sha256[:8]} are not pytorch-fid's: not a published FID")
    return f"{name} ({'; '.join(notes)})" if notes else name
