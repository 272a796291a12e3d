"""A decoder as plain data: scalars, and one node per axis, which may cycle over depth."""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from ablate import check
from ablate.errors import AblateError, did_you_mean
from ablate.model.axes.attention import ATTENTIONS
from ablate.model.axes.moe import FFNS  # the dense ones, and the mixture
from ablate.model.axes.norm import NORMS
from ablate.model.axes.pattern import PATTERNS
from ablate.model.axes.placement import PLACEMENTS
from ablate.model.axes.position import POSITIONS
from ablate.model.kernels import check_kernel
from ablate.registry import Axis, check_options

AXES: dict[str, Axis] = {
    "norm": NORMS,
    "placement": PLACEMENTS,
    "attention": ATTENTIONS,
    "position": POSITIONS,
    "pattern": PATTERNS,
    "ffn": FFNS,
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that a decoder is built from. `from_dict` reads it, `to_dict` writes it."""

    dim: int
    depth: int
    heads: int
    context: int
    vocab_size: int
    norm: dict
    placement: dict
    attention: dict
    position: dict
    pattern: dict
    ffn: dict
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    bias: bool = False
    logit_softcap: float | None = None
    kernel: str = "auto"

    @classmethod
    def from_dict(cls, node: Mapping[str, Any]) -> "DecoderConfig":
        """Checks a plain dict.

        Raises:
            AblateError: an unknown key, a missing one, or a value of the wrong type or range.
        """
        config = cls(**check_options("model", "a decoder", cls, node))
        for key in ("dim", "depth", "heads", "context", "vocab_size"):
            check.whole(f"model.{key}", getattr(config, key), 1)
        check.number("model.logit_softcap", config.logit_softcap, above=0, null=True)
        check_kernel(config.kernel)
        config.layers()
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def layers(self) -> list[dict[str, dict]]:
        """One checked specification per layer: axis -> component with all its options."""
        return self._layers

    @cached_property
    def _layers(self) -> list[dict[str, dict]]:
        columns = {axis: resolve_cycle(registry, getattr(self, axis), self.depth) for axis, registry in AXES.items()}
        mixed = len({str(spec) for spec in columns["position"]}) > 1
        for spec in columns["position"]:
            position = POSITIONS.component(spec["name"])
            if mixed and position.absolute:
                raise AblateError(
                    f"model.position.cycle: '{spec['name']}' positions are added once, to the embeddings: "
                    "they cannot differ from layer to layer"
                )
            if self.scale_embeddings and position.scales_embeddings:
                raise AblateError(
                    f"model.scale_embeddings=true: '{spec['name']}' positions already scale the embeddings by "
                    "sqrt(dim); leave it false"
                )
        return [{axis: columns[axis][layer] for axis in AXES} for layer in range(self.depth)]


def resolve_cycle(axis: Axis, node: Mapping[str, Any], depth: int) -> list[dict[str, Any]]:
    """One checked specification per layer from a node: `{name: ...}` or `{cycle: [...], ...}`.

    Options beside `cycle` go to every component of the cycle that has them.
    """
    if "cycle" not in node:
        return [axis.check(node)] * depth
    members = node["cycle"]
    if not isinstance(members, list) or not members:
        raise AblateError(f"{axis.key}.cycle={members!r}: expected a list of components, such as [full, local]")
    members = [dict(m) if isinstance(m, Mapping) else {"name": m} for m in members]
    if any("name" not in m for m in members):
        raise AblateError(
            f"{axis.key}.cycle: each member is a name or has one, such as [full, {{name: local, window: 64}}]"
        )
    shared = {key: value for key, value in node.items() if key not in ("cycle", "name")}
    known = [axis.options(member.get("name")) for member in members]
    for key, value in shared.items():
        takers = [m for m, options in zip(members, known, strict=True) if key in options and key not in m]
        if not takers:
            valid = {name for options in known for name in options}
            raise AblateError(f"{axis.key}.{key}: no component of the cycle takes it{did_you_mean(key, valid)}")
        for member in takers:
            member[key] = value
    specs = [axis.check(member) for member in members]
    return [specs[layer % len(specs)] for layer in range(depth)]


def stretches(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """One row for each stretch of equal rows, with the numbers of its layers in front: `0-3`."""
    stretched, first = [], 0
    for row, same in groupby(rows):
        last = first + len(list(same)) - 1
        stretched.append((str(first) if first == last else f"{first}-{last}", *row))
        first = last + 1
    return stretched


def component(spec: dict[str, Any]) -> str:
    """A component as a table shows it: its name and the options that are on."""
    options = " ".join(f"{key}={value}" for key, value in spec.items() if key != "name" and value)
    return f"{spec['name']} {options}".strip()


def load_plugins(modules: Iterable[str]) -> None:
    """Imports the user's own modules, whose components register themselves.

    Raises:
        AblateError: not a list of names, or a module that is not found or fails to import.
    """
    if not isinstance(modules, Iterable) or isinstance(modules, str) or not all(isinstance(m, str) for m in modules):
        raise AblateError(f"plugins={modules}: expected a list of names, such as plugins=[my_parts]")
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise AblateError(f"plugins: cannot import '{module}': {error}; is its folder on PYTHONPATH?") from error
