"""The paper's training step as an ordinary PyTorch script has it: the baseline that train_step.py measures against.

    python tests/benchmarks/plain_loop.py [--images FOLDER] [--batch-size 8] [--steps 10] [--threads 2] [--workers 2]

PyTorch, torchvision and diffusers only, with their defaults: fp32, an image file decoded and transformed for every
item by the workers of a DataLoader, Adam as plainly constructed, an EMA updated parameter by parameter, the loss read
every step. Nothing is slowed on purpose: the DataLoader's workers (one a core, at most 8) stay alive from epoch to
epoch and prefetch, and on a GPU memory is pinned. Without --images it trains on noise. bf16 autocast, channels_last and
torch.compile are there for those who compare with the same script, so tuned.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

CIFAR10: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
    "dropout": 0.1,
}
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
    images: Path, network: dict[str, Any], batch_size: int, workers: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Epoch after epoch of a folder's images, of the side and channels that the network takes."""
    loader = DataLoader(
        ImageFolder(images, network["sample_size"], network["in_channels"]),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    while True:
        yield from loader


def default_workers() -> int:
    """One a core, at most 8."""
    return min(8, os.cpu_count() or 1)


def write_noise_images(folder: Path, count: int, side: int, channels: int = 3) -> Path:
    """PNG files of noise in a new folder."""
    folder.mkdir()
    shape = (side, side, channels) if channels > 1 else (side, side)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=default_workers())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        images = options.images or write_noise_images(
            Path(temporary) / "images", 16 * options.batch_size, CIFAR10["sample_size"]
        )
        batches = decoded_batches(images, CIFAR10, options.batch_size, options.workers, device)
        loop = PlainLoop(UNet2DModel(**CIFAR10), batches, device)
        for step in range(options.steps):
            began = time.perf_counter()
            loss = loop.step()  # reading the loss waits for the device
            print(f"step {step}: loss {loss:.1f}, {time.perf_counter() - began:.3f} s", flush=True)


if __name__ == "__main__":
    main()
