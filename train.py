"""Trains one decoder, or with -m a sweep: python train.py model=gqa_rope model/norm=layernorm seed=1"""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("train")
def main(config: DictConfig) -> float:
    from ablate.training.job import train  # Lightning takes seconds to import: not for --help

    hydra = HydraConfig.get()
    # The search path too: without it a resumed run would not find the user's own groups.
    overrides = [*hydra.overrides.task, *(o for o in hydra.overrides.hydra if "hydra.searchpath" in o)]
    if hydra.mode != RunMode.MULTIRUN:
        return train(config, overrides)
    if config.study is None or config.study.get("arm") is None:
        return train(config, overrides, job=hydra.job.num, sweep_dir=hydra.sweep.dir)
    from ablate.study.launch.job import run

    return run(config, overrides)


if __name__ == "__main__":
    main()
