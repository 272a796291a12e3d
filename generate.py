"""Generates text with a trained run: python generate.py run=runs/... prompt="def " """

import sys

from omegaconf import DictConfig

from ablate.cli import entry_point


@entry_point("generate")
def main(config: DictConfig) -> None:
    import ablate
    from ablate.generation import GenerationOptions, Sampling, stream
    from ablate.generation.terminal import at_terminal, converse, piped, read_prompts, texts, write
    from ablate.hardware import resolve_accelerator
    from ablate.model.config import load_plugins

    if config.prompt is not None and config.prompts is not None:
        raise ablate.AblateError("prompts: prompt is set too; give one of them")
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)
    named = ("max_new_tokens", "use_cache", "prefill_chunk", "compile", "seed")
    options = {"sampling": sampling, **{name: config[name] for name in named}}
    GenerationOptions(**options)  # checks them before the run is loaded
    prompts = None if config.prompts is None else read_prompts(config.prompts)
    load_plugins(config.plugins)
    run = ablate.load(config.run)
    if resolve_accelerator(config.accelerator, "accelerator") == "gpu":
        run.model.cuda()

    def continuation(prompt):
        return stream(run.model, run.tokenizer, prompt, **options)

    sys.stdout.reconfigure(errors="replace")  # not every terminal can show every character
    if config.prompt is not None:
        write([(config.prompt, continuation(config.prompt))])
    elif prompts is not None:
        write(texts(prompts, continuation))
    elif at_terminal():
        converse(continuation)
    else:
        write((prompt, continuation(prompt)) for prompt in piped())


if __name__ == "__main__":
    main()
