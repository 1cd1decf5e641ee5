"""Dropout does not depend on how a batch is shared out."""

import pytest
import torch
from torch import nn

from region_workers.training.randomness import set_dropout_rows, use_batch_dropout

BATCH = 8


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def images(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.rand(BATCH, 6, 4, 4).add(0.5).contiguous(memory_format=request.param)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.2), nn.Identity()), nn.Dropout(0.0))


def parts_of(module: nn.Module, batch: torch.Tensor, count: int) -> torch.Tensor:
    """The outputs of `count` equal parts, each computed as a worker of its own would."""
    dropouts = use_batch_dropout(module)
    share = BATCH // count
    outputs = []
    for first in range(0, BATCH, share):
        torch.manual_seed(5)
        set_dropout_rows(dropouts, slice(first, first + share), BATCH, torch.device("cpu"))
        outputs.append(module(batch[first : first + share]))
    return torch.cat(outputs)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_parts_drop_what_the_whole_batch_drops(images: torch.Tensor, count: int) -> None:
    whole = parts_of(network(), images, 1)
    assert 0 < int((whole == 0).sum()) < whole.numel()
    assert torch.equal(parts_of(network(), images, count), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_asked_for_is_dropped_and_the_mean_stays(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Dropout(0.1))
    ones = torch.ones(BATCH, 64, 32, 32, dtype=dtype, requires_grad=True)
    dropped = parts_of(module, ones, 1)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.002)
    assert float(dropped.float().mean()) == pytest.approx(1.0, abs=0.005)
    dropped.sum().backward()
    assert ones.grad is not None
    assert torch.equal(ones.grad, dropped.detach())


def test_nearly_all_may_be_dropped() -> None:
    dropped = parts_of(nn.Sequential(nn.Dropout(0.999999)), torch.ones(BATCH, 6, 4, 4), 1)
    assert torch.isfinite(dropped).all()


def test_numbers_are_dropped_independently() -> None:
    dropped = parts_of(nn.Sequential(nn.Dropout(0.5)), torch.ones(BATCH, 64, 32, 32), 1).flatten() == 0
    for apart in range(1, 9):
        both = float((dropped[apart:] & dropped[:-apart]).float().mean())
        assert both == pytest.approx(0.25, abs=0.005)


def test_only_what_drops_is_replaced_and_nothing_is_dropped_in_evaluation(images: torch.Tensor) -> None:
    module = network()
    assert len(use_batch_dropout(module)) == 2
    assert type(module[2]) is nn.Dropout
    assert [id(m) for m in use_batch_dropout(module)] == [id(m) for m in use_batch_dropout(module)]
    assert torch.equal(parts_of(module.eval(), images, 2), images)
