"""`python -m region_workers JOB.json`: one worker without Ray; under torchrun, one of several."""

import os
import sys
from datetime import timedelta
from pathlib import Path

from schemas.job import WorkerJob
from schemas.process import quick_imports, wait_passively

wait_passively()
with quick_imports():
    import torch
    import torch.distributed as dist

    from region_workers.training.failures import StopRequestedError
    from region_workers.worker.run import run_job


def main() -> int:
    """Run the job file given as the only argument; 0 when done, 2 if it is none, 130 when stopped as asked."""
    if len(sys.argv) != 2:
        print("usage: python -m region_workers JOB.json", file=sys.stderr)
        return 2
    try:
        job = WorkerJob.model_validate_json(Path(sys.argv[1]).read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        print(f"JOB.json = {sys.argv[1]}: expected a worker's job as JSON, but: {reason}", file=sys.stderr)
        return 2
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        limit = timedelta(seconds=job.hang_limit_s)
        dist.init_process_group("nccl" if job.use_gpu and torch.cuda.is_available() else "gloo", timeout=limit)
    try:
        run_job(job)
    except StopRequestedError:
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
