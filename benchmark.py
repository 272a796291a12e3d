"""Speed, measured: python benchmark.py task=training peers=true"""

from pathlib import Path

from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("benchmark")
def main(config: DictConfig) -> None:
    from ablate.benchmark.report import run_training

    run_training(config, Path(config.out))


if __name__ == "__main__":
    main()
