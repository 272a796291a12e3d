"""Measures speed: python benchmark.py run=runs/..., python benchmark.py task=training"""

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    if config.task == "training":
        from ablate.benchmark.training.command import benchmark_training

        benchmark_training(config)
    else:
        from ablate.benchmark.generation.command import benchmark_generation

        benchmark_generation(config, HydraConfig.get(), sys.argv[1:])


if __name__ == "__main__":
    main()
