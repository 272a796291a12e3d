"""Several processes that train one model: who this one is among them, and how they start and end together.

Rank 0 makes the run folder, and is the only one that writes there or says anything. It is the process that the user
started; Lightning starts the others by the same command, unless torchrun or Slurm started all of them.
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

from ablate.errors import LED_BY, AblateError
from ablate.training.quiet import quiet
from ablate.training.sharding import ShardedStrategy

STRATEGIES = ("auto", "ddp", "fsdp")
_PATIENCE_S = 30.0  # with ranks that have the same reason to end as rank 0
_GRACE_S = 3.0  # between the end of one rank and the notice of another


@dataclass(frozen=True)
class Ranks:
    """`count` processes on all nodes together, `local` of them on this one; this is number `rank`."""

    count: int = 1
    local: int = 1
    rank: int = 0
    folder: str | None = None  # the run folder, where another process has made it

    @property
    def leads(self) -> bool:
        return self.rank == 0


def find(config: DictConfig, accelerator: str) -> Ranks:
    """This process among those that `config.trainer` asks for.

    Raises:
        AblateError: they cannot be had here, or do not know where to meet.
    """
    trainer = config.trainer
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
                f"trainer.devices={trainer.devices}: with -m only on one machine, where this process starts the "
                "others; under torchrun or srun start each run by its own command"
            )
        if config.run_dir is None:
            raise AblateError(
                "run_dir=null: processes that torchrun, srun or several machines start must agree on the folder; "
                "set run_dir=..."
            )
        folder = config.run_dir
    return Ranks(count, trainer.devices, probe.global_rank, folder)


def _probe(config: DictConfig, accelerator: str) -> Trainer:
    """A trainer that will not train: Lightning knows its cluster environments."""
    quiet()
    try:
        probe = Trainer(
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy="ddp",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        probe.strategy.cluster_environment.validate_settings(config.devices, config.num_nodes)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise AblateError(f"trainer.devices={config.devices}: {str(error).splitlines()[0]}") from error
    return probe


def strategy(ranks: Ranks, name: str) -> str | Strategy:
    """Lightning's for `trainer.strategy=name`; one process needs none."""
    if ranks.count == 1:
        return "auto"
    if name == "fsdp":
        return ShardedStrategy(ranks.count)
    # Buffers are the same on all ranks, or counts of a rank's own, as a mixture of experts keeps them.
    return DDPStrategy(broadcast_buffers=False)


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, in place; of one rank, its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def gathered(own: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank has, by rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    found: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


@contextlib.contextmanager
def following(ranks: Ranks) -> Iterator[None]:
    """Around all that a rank other than 0 does: says nothing but what went wrong, and ends with its leader."""
    if os.environ.get(LED_BY):
        leader = int(os.environ[LED_BY].partition(":")[0])
        threading.Thread(target=_end_with, args=(leader,), daemon=True).start()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except AblateError as error:
            raise AblateError(f"rank {ranks.rank}: {error}") from error
        except RuntimeError:
            time.sleep(1.0)  # if the connection broke because the leader has ended, so does this process, in silence
            raise


def _end_with(leader: int) -> None:
    """Ends this process once its parent is gone, however that ended: it may be waiting for it, and nothing wakes it."""
    while os.getppid() == leader:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def together(ranks: Ranks, path: Path, overrides: list[str]) -> Iterator[None]:
    """Around a run: what Lightning starts is told its folder; what Lightning leaves in this process is taken back.

    overrides: of this run alone, which in a sweep are not those of the command.
    """
    if ranks.count == 1:
        yield
        return
    environment, arguments, threads = dict(os.environ), sys.argv, torch.get_num_threads()
    if LED_BY not in os.environ:
        os.environ[LED_BY] = f"{os.getpid()}:{path}"
        os.environ.pop("HYDRA_FULL_ERROR", None)  # ours, for this process
        if _multirun():
            sys.argv = [sys.argv[0], *overrides]
    _set_num_threads_if_needed(ranks.local)  # Lightning does, but after the processor has been measured
    try:
        yield
    finally:
        sys.argv = arguments
        torch.set_num_threads(threads)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def ending_together(trainer: Trainer, agreed: tuple[type[Exception], ...]) -> Iterator[None]:
    """Around training: the ranks that Lightning started here are gone after it.

    agreed: errors that all ranks raise at the same step.

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
        if watch.processes and watch.found.wait(_GRACE_S):  # a broken connection is noticed before its cause
            raise AblateError(watch.died) from error
        raise
    finally:
        watch.ended.set()
        watch.join()
        watch.dismiss(patience_s)


class _Watch(threading.Thread):
    """Looks after the processes that Lightning starts. If one fails, this process ends with it, even from a wait for
    it that nothing else would end. Lightning's own observer would end it by SIGKILL, without a word: it gets none."""

    def __init__(self, trainer: Trainer):
        super().__init__(daemon=True)
        self._launcher, self._rank = trainer.strategy.launcher, trainer.global_rank
        self._path = trainer.default_root_dir
        self.ended, self.found, self.died = threading.Event(), threading.Event(), ""
        self.processes: list[subprocess.Popen] = []

    def run(self) -> None:
        while not self.ended.wait(0.1) and not self.found.is_set():
            self._take()
            for rank, process in enumerate(self.processes, self._rank + 1):
                if process.poll():
                    self._tell(rank, process.returncode)
                    break
        if self.found.is_set() and not self.ended.wait(_GRACE_S):
            print(f"error: {self.died}", file=sys.stderr, flush=True)
            self.dismiss(0)
            os._exit(1)

    def _take(self) -> None:
        """Takes over what Lightning has started by now, from the list that its observer reads every five seconds.

        Only once all are there: while Lightning starts them, the list grows.
        """
        started = getattr(self._launcher, "procs", [])
        if started and len(started) == self._launcher.num_processes - 1:
            self.processes += started
            started.clear()

    def _tell(self, rank: int, code: int) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        self.died = f"rank {rank} {how}, and the run with it; to go on: resume={self._path}"
        self.found.set()

    def dismiss(self, patience_s: float) -> None:
        """Waits for the processes to end, then ends them."""
        self._take()
        until = time.monotonic() + patience_s
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()


def _multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
