"""The yardstick of `startup.py`: trainers of Ray Train started together, and nothing else.

python tests/benchmarks/bare_trainers.py FOLDER

Each writes FOLDER/first-step-INDEX when it has made one training step of a small UNet, then waits to be killed.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def train(config: dict[str, Any]) -> None:
    """One step on one worker."""
    import torch
    from diffusers import UNet2DModel

    torch.set_num_threads(1)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
    )
    optimizer = torch.optim.Adam(network.parameters())
    noise = torch.randn(64, 1, 8, 8)
    (network(noise, torch.zeros(64), return_dict=False)[0] - noise).square().mean().backward()
    optimizer.step()
    Path(config["folder"], f"first-step-{config['index']}").touch()
    time.sleep(3600)


def main() -> None:
    """Start the trainers from threads of one driver."""
    folder, count = sys.argv[1], 3
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=max(count, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    threads = []
    for index in range(count):
        trainer = TorchTrainer(
            train,
            train_loop_config={"folder": folder, "index": index},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name=f"bare-{index}", storage_path=str(Path(folder, "ray"))),
        )
        threads.append(threading.Thread(target=trainer.fit))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
