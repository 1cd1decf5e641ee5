"""The paper's training step as an ordinary PyTorch script has it: the baseline that train_step.py measures against.

PyTorch, torchvision and diffusers only, with their defaults: fp32, an image file decoded and transformed for every
item by the workers of a DataLoader, Adam as plainly constructed, an EMA updated parameter by parameter, the loss read
every step. Nothing is slowed on purpose: the DataLoader's workers (one a core, at most 8) stay alive from epoch to
epoch and prefetch, and on a GPU memory is pinned. bf16 autocast, channels_last and torch.compile are there to compare
with the same script, so tuned.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

TIMESTEPS, LEARNING_RATE, CLIP, EMA_DECAY = 1000, 2e-4, 1.0, 0.9999


class ImageFolder(Dataset[torch.Tensor]):
    """The images of a folder, decoded when they are asked for: float32 [C, side, side] in [-1, 1]."""

    def __init__(self, folder: Path, side: int, channels: int) -> None:
        from torchvision import transforms  # here, since a loop that is given its batches does without

        self.paths = sorted(folder.iterdir())
        self.mode = "RGB" if channels == 3 else "L"
        self.transform = transforms.Compose(
            [
                transforms.Resize(side),
                transforms.CenterCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * channels, (0.5,) * channels),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image_CHW: torch.Tensor = self.transform(Image.open(self.paths[index]).convert(self.mode))
        return image_CHW


class PlainLoop:
    """Model, data, optimizer and EMA of the script; `step` trains on the next batch and returns its loss.

    `batches`: endless, float32 [B, C, H, W] in [-1, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[torch.Tensor],
        device: torch.device,
        region: tuple[int, int] = (0, TIMESTEPS),
        *,
        bf16: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.batches, self.device, self.region, self.bf16 = batches, device, region, bf16
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=self.format).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.ema = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS)).cumprod(dim=0).to(device)

    def step(self) -> float:
        clean = next(self.batches).to(self.device).contiguous(memory_format=self.format)
        noise = torch.randn_like(clean)
        t = self.draw_timesteps(len(clean))
        alpha = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            predicted = self.forward(noisy, t).sample
        loss = (noise - predicted).square().sum(dim=(1, 2, 3)).mean(dim=0)

        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.ema, self.model.parameters(), strict=True):
                average.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)
        return loss.item()

    def draw_timesteps(self, count: int) -> torch.Tensor:
        """Antithetic: half a batch is drawn, the other half mirrors it within the region."""
        start, stop = self.region
        t = torch.randint(start, stop, (count // 2 + 1,), device=self.device)
        return torch.cat([t, start + stop - 1 - t])[:count]


def decoded_batches(
    images: Path, network: dict[str, Any], batch_size: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Epoch after epoch of a folder's images, of the side and channels that the network takes."""
    loader = DataLoader(
        ImageFolder(images, network["sample_size"], network["in_channels"]),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=min(8, os.cpu_count() or 1),
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        yield from loader
