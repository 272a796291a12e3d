"""`python benchmark.py`: from a configuration to a table, `generation.json` and a page."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ablate import check
from ablate.accounting import budget
from ablate.benchmark.generation.cache_memory import cache_memory
from ablate.benchmark.generation.limits import Limits, Work, measure_limits, weight_bytes
from ablate.benchmark.generation.measure import (
    Point,
    Workload,
    measure,
    ours,
    random_prompts,
    with_limits,
    with_ratios,
)
from ablate.benchmark.generation.peers import llama_with_weights_of, peer_ways
from ablate.benchmark.generation.results import Result, write_result
from ablate.benchmark.generation.words import figure
from ablate.benchmark.options import listed
from ablate.benchmark.peers import check_peer
from ablate.benchmark.rounds import progress
from ablate.cli import console
from ablate.compose import plain
from ablate.errors import AblateError
from ablate.files import make_folder
from ablate.generation.prompts import check_generation_memory
from ablate.hardware import decoding_products, device_of, has_bf16, resolve_accelerator
from ablate.model.config import DecoderConfig, load_plugins
from ablate.model.decoder import Decoder
from ablate.model.kernels.kernel import Place
from ablate.overrides import key_of, parsed, under
from ablate.page.table import Cell, Column, filled
from ablate.run import load
from ablate.training.provenance import provenance
from ablate.words import counted, number, size

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
FOLDER = "results/benchmark"  # for out=null, outside a sweep
NOT_IN_LABEL = ("out", "task")  # overrides that a label leaves out
VALUE_ONLY = ("model", "run")  # a label shows only the value of these overrides, not the key


def benchmark_generation(config: DictConfig, hydra: HydraConf, words: list[str]) -> None:
    """Measures what `conf/task/generation.yaml` and the overrides describe; prints a table, writes JSON and a page.

    hydra: how Hydra composed the configuration. words: the arguments of the command line.

    Raises:
        AblateError: the user made a mistake; nothing has been measured yet.
    """
    options, output = Options.of(config), Output.of(config, hydra, words)
    load_plugins(config.plugins)
    model = _model(config, options, list(hydra.overrides.task))
    model.kernels(Place(options.device.type, options.dtype, gradient=False))  # raises if model.kernel cannot run there
    for workload in options.workloads:
        check_generation_memory(model, workload.batch, workload.length, use_cache=True)
    make_folder(output.folder, "out")
    terminal = console()
    terminal.print(f"{output.label}: {_conditions(options)}", markup=False, highlight=False)
    points, limits = _measure(model, options, terminal)
    result = _result(output.label, options, model, limits, points)
    _show(terminal, result)
    file = write_result(output.folder, result)
    from ablate.benchmark.generation.page import write_page  # plotly takes a while to import

    terminal.print(f"written to {file} and {write_page(output.page)}", markup=False, soft_wrap=True)


# --- options -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is measured and how, apart from the model."""

    workloads: list[Workload]
    rounds: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    compile: bool
    uncached: bool
    peers: bool

    @classmethod
    def of(cls, config: DictConfig) -> "Options":
        """From `conf/benchmark.yaml` and the overrides.

        Raises:
            AblateError: an option of the wrong type or out of range, or a device that the machine does not have.
        """
        prompts, news, batches = (
            listed(config, key, _count, "[1,4]") for key in ("prompt_tokens", "new_tokens", "batch")
        )
        accelerator = resolve_accelerator(config.accelerator, "accelerator")
        return cls(
            workloads=[Workload(batch, prompt, new) for prompt in prompts for new in news for batch in batches],
            rounds=check.whole("rounds", config.rounds, 1),
            seed=check.seed("seed", config.seed),
            device=device_of(accelerator),
            dtype=_dtype(config.precision, accelerator),
            compile=check.switch("compile", config.compile),
            uncached=check.switch("uncached", config.uncached),
            peers=check.switch("peers", config.peers),
        )

    def check_context(self, context: int, remedy: str) -> None:
        """Raises AblateError if a prompt and its new tokens are longer than the model's context."""
        longest = max(self.workloads, key=lambda workload: workload.length)
        if longest.length > context:
            raise AblateError(
                f"prompt_tokens={longest.prompt_tokens} and new_tokens={longest.new_tokens} make {longest.length}, "
                f"more than model.context={context}: {remedy}"
            )


def _count(key: str, value: object) -> int:
    return check.whole(key, value, 1, hint=f"or a list such as {key}=[1,4]")


def _dtype(precision: str | None, accelerator: str) -> torch.dtype:
    if check.choice("precision", precision, DTYPES, null=True) is not None:
        return DTYPES[precision]
    return torch.bfloat16 if accelerator == "gpu" and has_bf16("gpu") else torch.float32


# --- label and folders -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """Where a measurement goes.

    label: its name in tables and plots. folder: the folder of its JSON.
    page: the folder of the page; in a sweep all jobs share it.
    """

    label: str
    folder: Path
    page: Path

    @classmethod
    def of(cls, config: DictConfig, hydra: HydraConf, words: list[str]) -> "Output":
        """hydra: how Hydra composed `config`. words: the arguments of the command line."""
        sweep = hydra.mode == RunMode.MULTIRUN
        label = " ".join(map(_short, _swept(list(hydra.overrides.task), words))) if sweep else ""
        if not label:
            label = hydra.runtime.choices["model"] if config.run is None else Path(str(config.run)).resolve().name
        if not sweep:
            folder = Path(str(config.out or FOLDER))
            return cls(label, folder, folder)
        page = Path(str(hydra.sweep.dir))
        name = re.sub(r"[^A-Za-z0-9._=+-]+", "_", label)[:100]
        if name != label.replace(" ", "_") or config.run is not None:
            name += f"_{hydra.job.num}"  # two labels may differ only in what the name leaves out
        return cls(label, page / name, page)


def _swept(overrides: list[str], words: list[str]) -> list[Override]:
    """The overrides that differ between jobs, as this job has them; all its overrides if the command line has none."""
    command = parsed([word for word in words if "=" in word and not word.startswith("-")])
    keys = {override.key_or_group for override in command if override.is_sweep_override()}
    job = [override for override in parsed(overrides) if override.key_or_group not in NOT_IN_LABEL]
    return [override for override in job if override.key_or_group in keys] or ([] if command else job)


def _short(override: Override) -> str:
    """model/attention=mha -> attention=mha"""
    key, value = override.key_or_group, override.get_value_element_as_str()
    if key == "run":
        value = Path(value.strip("'\"")).resolve().name
    return value if key in VALUE_ONLY else f"{re.split('[./]', key)[-1]}={value}"


# --- the model ---------------------------------------------------------------------------------------


def _model(config: DictConfig, options: Options, overrides: list[str]) -> Decoder:
    """The run's model, or the preset's with random weights; in fp32 on the CPU."""
    if config.run is None:
        model_config = DecoderConfig.from_dict(plain(config.model))
        _check_model(model_config, options, "raise model.context, or lower them")
        return Decoder(model_config, options.seed).eval()
    override = first_of_model(overrides)
    if override is not None:
        raise AblateError(f"{override}: run={config.run} has a model of its own; leave one of them out")
    model = load(config.run).model
    _check_model(model.config, options, "the run was trained with this context; lower them")
    return model


def _check_model(config: DecoderConfig, options: Options, remedy: str) -> None:
    options.check_context(config.context, remedy)
    if options.peers:
        check_peer(config)


def first_of_model(overrides: list[str]) -> str | None:
    """The first of the overrides that changes the model."""
    return next((override for override in overrides if under(key_of(override), ["model"])), None)


def _moved(model: torch.nn.Module, options: Options) -> torch.nn.Module:
    """The model on the device, with its parameters in the precision. Buffers, such as rotary angles, keep theirs."""
    model.to(options.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(options.dtype)
    return model


# --- measuring, and showing it -----------------------------------------------------------------------


def _measure(model: Decoder, options: Options, terminal: Console) -> tuple[list[Point], Limits]:
    ways = ours(model, options.compile, options.uncached)
    if options.peers:
        ways += peer_ways(_moved(llama_with_weights_of(model), options), options.compile)
    _moved(model, options)
    before = measure_limits(options.device, options.dtype)

    def prompts(workload: Workload) -> list[list[int]]:
        return random_prompts(workload, model.config.vocab_size, options.seed)

    turns = len(options.workloads) * len(ways) * (options.rounds + 1)
    with progress(turns, terminal) as say:
        points = measure(ways, options.workloads, options.rounds, prompts, options.device, say)
    limits = before.or_better(measure_limits(options.device, options.dtype))
    return with_ratios(with_limits(points, Work(model), limits)), limits


def _conditions(options: Options) -> str:
    machine = _gpu(options) or counted(torch.get_num_threads(), "thread")
    compiled = ", compiled" if options.compile else ""
    return f"{_precision(options)} on {machine}, {counted(options.rounds, 'round')}{compiled}"


def _gpu(options: Options) -> str | None:
    return torch.cuda.get_device_name() if options.device.type == "cuda" else None


def _precision(options: Options) -> str:
    return str(options.dtype).removeprefix("torch.")


def _result(label: str, options: Options, model: Decoder, limits: Limits, points: list[Point]) -> Result:
    return Result(
        label=label,
        model=model.config.to_dict(),
        budget=budget(model),
        weight_bytes=weight_bytes(model, 1),
        device=options.device.type,
        gpu=_gpu(options),
        threads=torch.get_num_threads(),
        precision=_precision(options),
        compile=options.compile,
        rounds=options.rounds,
        limits=limits,
        points=points,
        cache_memory=cache_memory(model),
        kernels=list(dict.fromkeys(model.kernels(_step(options)))),
        products=decoding_products(
            options.device.type, options.dtype, [workload.batch for workload in options.workloads], options.compile
        ),
        **provenance(),
    )


def _step(options: Options) -> Place:
    """Where a decoding step is computed."""
    device, dtype = options.device.type, options.dtype
    return Place(device, dtype, gradient=False, cached=True, tokens=1, compiled=options.compile)


COLUMNS: list[Column[Point]] = [
    Column("", lambda point: Cell(point.way)),
    Column("batch", lambda point: Cell(f"{point.batch:,}")),
    Column("prompt", lambda point: Cell(f"{point.prompt_tokens:,}")),
    Column("new", lambda point: Cell(f"{point.new_tokens:,}")),
    Column("first\nms", figure("first_token_s", 1e3)),
    Column("ms /\ntoken", figure("token_s", 1e3)),
    Column("min – max", lambda point: Cell(figure("token_s", 1e3)(point).spread)),
    Column("tokens\n/ s", figure("tokens_per_s")),
    Column("x no\ncache", figure("speedup")),
    Column("x\npeer", figure("times_peer")),
    Column("% of\nlimit", figure("fraction_of_limit", 100)),
    Column("cache\nMB", figure("cache_bytes", 1e-6)),
    Column("peak\nMB", figure("peak_memory_bytes", 1e-6)),
]


def _show(terminal: Console, result: Result) -> None:
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    titles, rows = filled(COLUMNS, result.points)
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title else "left")
    for point, cells in zip(result.points, rows, strict=True):
        table.add_row(*(cell.text for cell in cells), end_section=point.way == result.points[-1].way)
    terminal.print(table)
    how = f"steps: attention by {', '.join(result.kernels)}; matrix products by {', '.join(result.products)}"
    terminal.print(how, highlight=False, soft_wrap=True)
    terminal.print(
        f"limit: {size(result.limits.bandwidth_bytes_per_s)}/s of memory, "
        f"{number(result.limits.flops_per_s / 1e9)} GFLOP/s of matrix products, as measured; "
        f"a token reads {size(result.weight_bytes)} of weights, and adds "
        f"{result.budget.kv_bytes_per_token:,} bytes to the cache",
        highlight=False,
        soft_wrap=True,
    )
