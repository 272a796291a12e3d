"""Speed, measured: python benchmark.py run=runs/... or task=training"""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    from ablate.benchmark.command import run_generation, run_training

    if config.task == "training":
        run_training(config, Path(str(config.out)))
    else:
        run_generation(config, HydraConfig.get(), sys.argv[1:])


if __name__ == "__main__":
    main()
