"""The command line with the Frechet distance, which takes half a minute and is made of what is on disk, left out."""

import ebdiff_orchestrator.evaluation.evaluate as evaluation
from ebdiff_orchestrator.cli.app import main
from ebdiff_orchestrator.evaluation.statistics import Statistics


def without_distance(ours: Statistics, theirs: Statistics) -> float:
    """A number of the statistics, in the distance's place."""
    return float(abs(ours.mean - theirs.mean).sum())


if __name__ == "__main__":
    evaluation.frechet_distance = without_distance
    main()
