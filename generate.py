"""Text from a trained run: python generate.py run=runs/... prompt="def " """

import sys

from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("generate")
def main(config: DictConfig) -> None:
    import ablate
    from ablate.compose import plain
    from ablate.generation import stream
    from ablate.model.config import load_plugins
    from ablate.training.hardware import resolve_accelerator

    load_plugins(plain(config.plugins))
    run = ablate.load(config.run)
    if resolve_accelerator(config.accelerator) == "gpu":
        run.model.cuda()
    pieces = stream(
        run.model,
        run.tokenizer,
        config.prompt,
        config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        use_cache=config.use_cache,
        seed=config.seed,
    )
    sys.stdout.write(config.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
