"""A verdict from any set of runs: python compare.py runs=FOLDER baseline=model/norm=layernorm"""

from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("compare")
def main(config: DictConfig) -> None:
    from ablate.study.compare import compare  # plotly and scipy take a second to import: not for --help

    compare(config)


if __name__ == "__main__":
    main()
