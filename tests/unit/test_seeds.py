"""Seeds: what is seeded on its own shares its random numbers with nothing else of its kind."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from ebdiff_orchestrator.ensemble.samples import sample_generator
from region_workers.training.randomness import StepRandomness
from schemas.digest import seed_from

CPU = torch.device("cpu")
MANY = 200_000  # of which, drawn at random, four or five pairs would be the same
SPAN = (0, 260)


def _image_seeds() -> Iterator[int]:
    return (sample_generator(0, index).initial_seed() for index in range(MANY))


def _step_seeds() -> Iterator[int]:
    randomness = StepRandomness(0, "train", SPAN, CPU)
    return (randomness.generator(step).initial_seed() for step in range(MANY))


def _network_seeds(steps: int) -> Iterator[int]:
    randomness = StepRandomness(0, "train", SPAN, CPU)
    for step in range(steps):
        randomness.seed_network(step)  # slow: it seeds every device's generator
        yield torch.initial_seed()


def _taken(seeds: Iterator[int]) -> np.ndarray:
    """What torch's generator on a CPU takes of each seed: the low 32 bits."""
    return np.fromiter(seeds, dtype=np.int64) & 0xFFFFFFFF


def test_torch_takes_the_low_32_bits_of_a_seed_on_a_cpu() -> None:
    numbers = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + (77 << 32), 6)]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])


@pytest.mark.parametrize("seeds", [_image_seeds, _step_seeds])
def test_no_two_of_many_share_their_random_numbers(seeds: Callable[[], Iterator[int]]) -> None:
    assert len(np.unique(_taken(seeds()))) == MANY


def test_the_networks_own_seeds_are_counted_on_from_step_to_step() -> None:
    assert np.array_equal(np.diff(_taken(_network_seeds(1000))) % (1 << 32), np.ones(999))


def test_every_bit_of_the_runs_seed_counts() -> None:
    seeds = [0, *(1 << bit for bit in range(63))]
    for stream in (("image",), ("train", *SPAN, "noise"), ("train", *SPAN, "data")):
        assert len(np.unique(_taken(seed_from(seed, *stream) for seed in seeds))) == len(seeds)


def test_stages_regions_and_purposes_of_one_step_have_seeds_of_their_own() -> None:
    places = [(stage, span) for stage in ("draw", "train") for span in (SPAN, (240, 460), (440, 1000))]
    seeds = [sample_generator(0, 7).initial_seed()]
    for stage, span in places:
        randomness = StepRandomness(0, stage, span, CPU)
        seeds += [randomness.generator(7, purpose).initial_seed() for purpose in ("noise", "random-importance")]
        for purpose in ("network", "importance-network"):
            randomness.seed_network(7, purpose)
            seeds.append(torch.initial_seed())
        seeds.append(randomness.seed_for("data"))
    assert len(np.unique(_taken(iter(seeds)))) == len(seeds) == 1 + 5 * len(places)


def test_neighbouring_seeds_give_noise_that_has_nothing_in_common() -> None:
    noise = torch.stack([torch.randn(3072, generator=sample_generator(0, index)) for index in range(500)])
    shared = (noise[:-1] * noise[1:]).mean(1)
    assert abs(float(shared.mean())) < 4 / (500 * 3072) ** 0.5
    assert float(shared.std()) == pytest.approx(3072**-0.5, rel=0.15)
