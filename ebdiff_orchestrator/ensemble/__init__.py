"""The ensemble: the experts and the router as one diffusers pipeline; needs neither ray nor the driver.

Importing this package lets plain `DiffusionPipeline.from_pretrained(folder)` load an ensemble: diffusers takes
components of other libraries only from modules that are imported already, and pipelines only from its own namespace,
so the pipeline of ensembles with classes or a VAE is entered there.
"""

import diffusers

from ebdiff_orchestrator.ensemble.images import iter_images, sample_images, write_images
from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline, load_ensemble
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.saving import save_ensemble
from ebdiff_orchestrator.ensemble.scheduler import ListDDIMScheduler

__all__ = [
    "EnsemblePipeline",
    "ListDDIMScheduler",
    "TimestepRouter",
    "iter_images",
    "load_ensemble",
    "sample_images",
    "save_ensemble",
    "write_images",
]

diffusers.EnsemblePipeline = EnsemblePipeline
