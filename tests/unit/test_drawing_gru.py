"""The network of drawings computes what torch's own GRU does, whatever stands in the padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_networks import randomise, silence_half
from torch import Tensor, nn

from region_workers.networks.dense import load_verified
from region_workers.networks.drawing_gru import DrawingGRU, GRULayer
from region_workers.networks.pruned_unet import extract_expert
from region_workers.networks.supported import network_inputs
from region_workers.pruning.groups import find_groups
from region_workers.pruning.mask import kept_channels
from region_workers.storage.integrity import file_digests

LENGTHS = torch.tensor([3, 7, 1, 7, 5])
FREQUENCIES = [0.3, -1.2, 2.0, 0.7]
TIMESTEPS = torch.tensor([0, 34, 12, 7, 20])


def drawing_gru(**changes: Any) -> DrawingGRU:
    torch.manual_seed(0)
    return DrawingGRU(FREQUENCIES, **{"hidden_size": 6, "num_layers": 3, "num_train_timesteps": 35, **changes})


def noisy_drawings(length: int = 7) -> Tensor:
    return torch.randn(len(LENGTHS), length, 3, generator=torch.Generator().manual_seed(1))


class Reference(nn.Module):
    """The same network around torch.nn.GRU, a drawing at a time."""

    def __init__(self, ours: DrawingGRU) -> None:
        super().__init__()
        self.config, self.ours = ours.config, ours
        width = 5 + 2 * len(FREQUENCIES)
        self.gru = nn.GRU(width, ours.config.hidden_size, ours.config.num_layers, bidirectional=True)
        for number, layer in enumerate(ours.layers):
            assert isinstance(layer, GRULayer)
            for suffix, inputs, recurrent in zip(("", "_reverse"), layer.input, layer.recurrent, strict=True):
                for name, linear in (("ih", inputs), ("hh", recurrent)):
                    for kind in ("weight", "bias"):  # one tensor for both, so that gradients go to the same place
                        setattr(self.gru, f"{kind}_{name}_l{number}{suffix}", linear.get_parameter(kind))

    def forward(self, drawing_L3: Tensor, timestep: int) -> Tensor:
        steps = torch.cat([drawing_L3[:1, :2], drawing_L3[1:, :2] - drawing_L3[:-1, :2]])
        other = steps if self.config.coordinates == "absolute" else drawing_L3[:, :2].cumsum(0)
        angles = torch.tensor(FREQUENCIES) * 8 * torch.pi * (timestep + 1) / self.config.num_train_timesteps
        time = torch.cat([angles.sin(), angles.cos()]).expand(len(drawing_L3), -1)
        states, _ = self.gru(torch.cat([drawing_L3, other, time], dim=1))
        noise: Tensor = self.ours.final(torch.cat([self.ours.out_proj(states), time], dim=1))
        return noise


@pytest.mark.parametrize(
    ("hidden_size", "num_layers", "parameters"),
    [(96, 3, 416_859), (48, 2, 65_019), (128, 3, 736_027), (128, 4, 1_032_475)],
)
def test_it_has_the_parameters_of_chirodiffs_network(hidden_size: int, num_layers: int, parameters: int) -> None:
    network = DrawingGRU(FREQUENCIES, hidden_size, num_layers)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("coordinates", ["absolute", "delta"])
def test_predictions_and_gradients_are_those_of_torchs_gru(coordinates: str) -> None:
    ours, sample = drawing_gru(coordinates=coordinates), noisy_drawings().requires_grad_()
    reference = Reference(ours)
    found = ours(sample, TIMESTEPS, LENGTHS).sample
    expected = torch.zeros_like(found)
    for index, length in enumerate(LENGTHS.tolist()):
        expected[index, :length] = reference(sample[index, :length], int(TIMESTEPS[index]))
    assert found.isclose(expected, atol=1e-6).all()
    inputs = [sample, *ours.parameters()]
    gradients = [torch.autograd.grad(noise.square().sum(), inputs) for noise in (found, expected)]
    for ours_of_it, reference_of_it in zip(*gradients, strict=True):
        assert float((ours_of_it - reference_of_it).abs().max()) < 1e-5 * float(reference_of_it.abs().max())


@torch.no_grad()
def test_padding_changes_no_bit() -> None:
    network, sample = drawing_gru(), noisy_drawings()
    found = network(sample, TIMESTEPS, LENGTHS).sample
    for index, length in enumerate(LENGTHS.tolist()):
        sample[index, length:] = torch.nan
    assert torch.equal(network(sample, TIMESTEPS, LENGTHS).sample, found)
    padded = torch.cat([sample, torch.full((len(sample), 20, 3), torch.inf)], dim=1)
    longer = network(padded, TIMESTEPS, LENGTHS).sample
    assert torch.equal(longer[:, :7], found)
    assert not longer[:, 7:].any()
    alone = network(sample[2:3, :1], TIMESTEPS[2:3]).sample
    assert alone.isclose(found[2:3, :1], atol=1e-6).all()


@torch.no_grad()
def test_weights_start_as_torchs_grus_do() -> None:
    network = DrawingGRU(FREQUENCIES)
    for layer in network.layers:
        for parameter in layer.parameters():
            assert 0.9 < float(parameter.abs().max()) * 96**0.5 <= 1
            assert abs(float(parameter.mean())) < 0.1 * 96**-0.5 or parameter.numel() < 1000


@torch.no_grad()
def test_a_saved_network_is_loaded_with_its_frequencies_and_the_training_drawings_lengths(tmp_path: Path) -> None:
    network = drawing_gru(length_counts=[0, 0, 4, 1]).eval()
    network.save_pretrained(tmp_path)
    loaded = load_verified(tmp_path, file_digests(tmp_path))
    assert isinstance(loaded, DrawingGRU)
    assert list(loaded.config.length_counts) == [0, 0, 4, 1]
    assert list(loaded.config.frequencies) == FREQUENCIES
    sample = noisy_drawings()
    assert torch.equal(loaded(sample, 3, LENGTHS).sample, network(sample, 3, LENGTHS, return_dict=False)[0])


@torch.no_grad()
def test_a_network_without_units_that_nobody_listens_to_predicts_the_same() -> None:
    network = randomise(drawing_gru(hidden_size=8))
    groups = find_groups(network, network_inputs(network))
    mask = silence_half(network, groups)
    expert = extract_expert(network, kept_channels(groups, mask))
    assert isinstance(expert, DrawingGRU)
    assert expert.config.hidden_size == 4
    assert expert.config.frequencies == network.config.frequencies
    found, expected = (each(noisy_drawings(), TIMESTEPS, LENGTHS).sample for each in (expert, network))
    assert found.isclose(expected, atol=1e-6).all()


@pytest.mark.parametrize(
    ("sample", "lengths", "named"),
    [
        (torch.zeros(2, 3, 8, 8), None, "sample"),
        (torch.zeros(2, 8, 2), None, "sample"),
        (torch.zeros(2, 8, 3), torch.tensor([8]), "lengths"),
        (torch.zeros(2, 8, 3), torch.tensor([8, 9]), "lengths"),
        (torch.zeros(2, 8, 3), torch.tensor([8, 0]), "lengths"),
    ],
)
def test_what_is_no_batch_of_drawings_is_refused(sample: Tensor, lengths: Tensor | None, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        drawing_gru()(sample, 1, lengths)
