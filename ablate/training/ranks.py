"""Several processes train one model: finds the rank of this process, and starts and ends all of them together.

Rank 0 is the process that the user started. It makes the run folder; the other ranks write nothing there and print
nothing. Lightning starts them by the same command, unless torchrun or Slurm has started all of them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig
from torch import Tensor

from ablate.errors import LED_BY, AblateError, first_line
from ablate.training.quiet import quiet
from ablate.training.sharding import ShardedStrategy

STRATEGIES = ("auto", "ddp", "fsdp")
_PATIENCE_S = 30.0  # how long rank 0 waits for ranks that end for the same reason as itself
_GRACE_S = 3.0  # how long a broken connection waits for news of the rank that broke it


@dataclass(frozen=True)
class Ranks:
    """This process among all that train the model.

    count: processes on all nodes together. local: processes on this node. rank: the number of this process.
    folder: the run folder that rank 0 or the user has named; None where this process may make one.
    """

    count: int = 1
    local: int = 1
    rank: int = 0
    folder: str | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0


def find(trainer: DictConfig, run_dir: str | None, accelerator: str) -> Ranks:
    """The place of this process among those that the node `trainer` configures.

    Raises:
        AblateError: this machine does not have them, or they would not agree on the run folder.
    """
    started = TorchElasticEnvironment().world_size() if TorchElasticEnvironment.detect() else 1
    count = trainer.devices * trainer.num_nodes
    if count == 1 and started == 1:
        return Ranks()
    if started not in (1, count):
        raise AblateError(
            f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}: torchrun started {started} "
            "processes; they must be trainer.devices times trainer.num_nodes"
        )
    probe = _probe(trainer, accelerator)
    leader = os.environ.get(LED_BY)
    folder = None if leader is None else leader.partition(":")[2]
    external = probe.strategy.cluster_environment.creates_processes_externally or trainer.num_nodes > 1
    if external and folder is None:
        if _multirun():
            raise AblateError(
                f"trainer.devices={trainer.devices}: -m works only on one machine, where this process starts the "
                "others; under torchrun or srun start each run with its own command"
            )
        if run_dir is None:
            raise AblateError(
                "run_dir=null: processes that torchrun, srun or several machines start must agree on the folder; "
                "set run_dir=..."
            )
        folder = run_dir
    return Ranks(count, trainer.devices, probe.global_rank, folder)


def _probe(node: DictConfig, accelerator: str) -> Trainer:
    """A trainer that only shows which cluster environment Lightning finds, and which rank it gives this process."""
    quiet()
    try:
        probe = Trainer(
            accelerator=accelerator,
            devices=node.devices,
            num_nodes=node.num_nodes,
            strategy="ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        probe.strategy.cluster_environment.validate_settings(node.devices, node.num_nodes)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise AblateError(f"trainer.devices={node.devices}: {first_line(error)}") from error
    return probe


def strategy(ranks: Ranks, name: str) -> str | Strategy:
    """Lightning's strategy for `trainer.strategy=name`."""
    if ranks.count == 1:
        return "auto"
    if name == "fsdp":
        return ShardedStrategy(ranks.count)
    # Buffers must not be broadcast: they are equal on all ranks, or count what one rank saw, as in mixtures of experts.
    return DDPStrategy(broadcast_buffers=False)


def total(values: Tensor) -> Tensor:
    """Replaces `values` by their sum over all ranks, and returns it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def gathered(own: dict[str, Any]) -> list[dict[str, Any]]:
    """The value `own` of every rank, in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    everyone: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return everyone


@contextlib.contextmanager
def following(ranks: Ranks) -> Iterator[None]:
    """For a rank other than 0: prints nothing but errors, with the number of the rank, and exits when rank 0 dies."""
    if os.environ.get(LED_BY):
        parent = int(os.environ[LED_BY].partition(":")[0])
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except AblateError as error:
            raise AblateError(f"rank {ranks.rank}: {error}") from error
        except RuntimeError:
            time.sleep(1.0)  # if the connection broke because rank 0 died, the thread ends this process silently
            raise


def _exit_with(parent: int) -> None:
    """Exits when the parent dies: a blocked collective would wait forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def environment(ranks: Ranks, path: Path, overrides: list[str]) -> Iterator[None]:
    """Tells the ranks that Lightning starts the run folder `path`; restores this process afterwards.

    overrides: of this run. In a sweep the started ranks get them instead of the command's, which describe every run.
    """
    if ranks.count == 1:
        yield
        return
    variables, arguments, threads = dict(os.environ), sys.argv, torch.get_num_threads()
    if LED_BY not in os.environ:
        os.environ[LED_BY] = f"{os.getpid()}:{path}"
        os.environ.pop("HYDRA_FULL_ERROR", None)  # set by ablate.cli for this process alone
        if _multirun():
            sys.argv = [sys.argv[0], *overrides]
    _set_num_threads_if_needed(ranks.local)  # Lightning sets it later, after the processor has been measured
    try:
        yield
    finally:
        sys.argv = arguments
        torch.set_num_threads(threads)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(variables)


@contextlib.contextmanager
def watched(trainer: Trainer, agreed: tuple[type[Exception], ...]) -> Iterator[None]:
    """Watches the ranks that Lightning starts in this block: ends the run if one dies, and ends them after the block.

    agreed: errors that all ranks raise at the same step; the other ranks then get time to end by themselves.

    Raises:
        AblateError: one of them has died.
    """
    watch = _Watch(trainer)
    watch.start()
    patience_s = 0.0
    try:
        yield
        patience_s = _PATIENCE_S
    except agreed:
        patience_s = _PATIENCE_S
        raise
    except RuntimeError as error:
        if watch.processes and watch.one_died.wait(_GRACE_S):  # the connection breaks before the death is noticed
            raise AblateError(watch.report) from error
        raise
    finally:
        watch.over.set()
        watch.join()
        watch.end_all(patience_s)


class _Watch(threading.Thread):
    """Watches the processes that Lightning starts, and ends this process if one of them fails, because this one may be
    blocked in a collective that nothing else would end. Lightning's own observer, which would end this process by
    SIGKILL and without a message, gets nothing to observe.

    over: set when there is nothing more to watch. one_died: set when a rank has failed; `report` then says how.
    """

    def __init__(self, trainer: Trainer):
        super().__init__(daemon=True)
        self._launcher, self._rank = trainer.strategy.launcher, trainer.global_rank
        self._path = trainer.default_root_dir
        self.over, self.one_died, self.report = threading.Event(), threading.Event(), ""
        self.processes: list[subprocess.Popen] = []

    def run(self) -> None:
        while not self.over.wait(0.1) and not self.one_died.is_set():
            self._take_over()
            for rank, process in enumerate(self.processes, self._rank + 1):
                if process.poll():
                    self._note(rank, process.returncode)
                    break
        if self.one_died.is_set() and not self.over.wait(_GRACE_S):
            print(f"error: {self.report}", file=sys.stderr, flush=True)
            self.end_all(0)
            os._exit(1)

    def _take_over(self) -> None:
        """Moves the started processes here from the list that Lightning's observer reads every five seconds.

        Waits until all are in it, because the list grows while Lightning starts them.
        """
        started = getattr(self._launcher, "procs", [])
        if started and len(started) == self._launcher.num_processes - 1:
            self.processes += started
            started.clear()

    def _note(self, rank: int, code: int) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self.report = f"rank {rank} {how}, and the run with it; to continue: resume={self._path}"
        self.one_died.set()

    def end_all(self, patience_s: float) -> None:
        """Waits for the processes to end, and kills those that have not ended in time."""
        self._take_over()
        until = time.monotonic() + patience_s
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()


def _multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
