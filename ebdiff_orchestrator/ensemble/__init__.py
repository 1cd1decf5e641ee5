"""The ensemble: the experts and the router as one diffusers pipeline; needs neither ray nor the driver.

Importing this package lets plain `DiffusionPipeline.from_pretrained(folder)` load an ensemble: diffusers takes
components of other libraries only from modules that are imported already, and pipelines only from its own namespace,
so our own, for drawings and for images with classes or a VAE, are entered there.
"""

import diffusers

from ebdiff_orchestrator.ensemble.loading import ensemble_of, load_ensemble
from ebdiff_orchestrator.ensemble.pipeline import EnsemblePipeline
from ebdiff_orchestrator.ensemble.router import TimestepRouter
from ebdiff_orchestrator.ensemble.samples import iter_samples, samples_of, write_samples
from ebdiff_orchestrator.ensemble.scheduler import ListDDIMScheduler
from ebdiff_orchestrator.ensemble.vector_pipeline import VectorPipeline

__all__ = [
    "EnsemblePipeline",
    "ListDDIMScheduler",
    "TimestepRouter",
    "VectorPipeline",
    "ensemble_of",
    "iter_samples",
    "load_ensemble",
    "samples_of",
    "write_samples",
]

diffusers.EnsemblePipeline = EnsemblePipeline
diffusers.VectorPipeline = VectorPipeline
