"""An axis: components by name, built from plain data.

A component is a class that is registered under the name in its YAML file. The constructor is its schema: the
positional parameters are what every component of the axis is given, the keyword-only parameters are its options, with
their types and defaults.

    @NORMS.register("rmsnorm")
    class RMSNorm(nn.Module):
        def __init__(self, given: Given, *, eps: float = 1e-6): ...

    NORMS.build({"name": "rmsnorm", "eps": 1e-5}, given)
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ablate import check
from ablate.errors import AblateError, did_you_mean


class Axis:
    """One independent choice, such as the norm, the corpus or the optimiser."""

    def __init__(self, key: str):
        self.key = key  # the place of the axis in the configuration: "model.norm"
        self._components: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        def enrol(component: type) -> type:
            known = self._components.get(name)
            if known and (known.__module__, known.__qualname__) != (component.__module__, component.__qualname__):
                raise AblateError(f"{self.key}: '{name}' is already registered by {known.__module__}.{known.__name__}")
            self._components[name] = component
            return component

        return enrol

    def names(self) -> list[str]:
        return sorted(self._components)

    def component(self, name: object) -> type:
        if not isinstance(name, str) or name not in self._components:
            raise check.no_choice(self.key, name, self._components)
        return self._components[name]

    def options(self, name: object) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of a component's constructor: its options."""
        return keyword_only(self.component(name))

    def check(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """A component's whole specification: its name, and every option with its value.

        Raises:
            AblateError: an unknown name or option, a missing option, a value of the wrong type.
        """
        if "name" not in node:
            raise AblateError(f"{self.key}: needs a name; valid: {', '.join(self.names())}")
        options = {key: value for key, value in node.items() if key != "name"}
        name = node["name"]
        return {"name": name, **check_options(self.key, f"'{name}'", self.component(name), options)}

    def build(self, node: Mapping[str, Any], *given: Any) -> Any:
        """The component that `node` describes. `given`: the positional parameters of its axis."""
        return self.make(self.check(node), *given)

    def make(self, spec: Mapping[str, Any], *given: Any) -> Any:
        """Like `build`, but from what `check` returned: nothing is checked again."""
        options = {key: value for key, value in spec.items() if key != "name"}
        component = self.component(spec["name"])
        try:
            inspect.signature(component).bind(*given, **options)
        except TypeError as error:
            raise AblateError(
                f"{self.key}: '{spec['name']}' ({component.__module__}) does not take what components of this kind are "
                f"given: {error}; see docs/your_own.md"
            ) from error
        return component(*given, **options)

    @contextmanager
    def scoped(self) -> Iterator[None]:
        """Forgets at the end what was registered inside. For tests."""
        before = dict(self._components)
        try:
            yield
        finally:
            self._components = before


def keyword_only(constructor: Callable) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in inspect.signature(constructor).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check_options(key: str, owner: str, constructor: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for all keyword-only parameters of `constructor`, from `given` and its defaults.

    Raises:
        AblateError: an unknown option, one without a value, a value of the wrong type; it names `key.option`.
    """
    options = keyword_only(constructor)
    hints = typing.get_type_hints(constructor if not isinstance(constructor, type) else constructor.__init__)
    for name in given:
        if name not in options:
            raise AblateError(f"{key}.{name}: {owner} has no option '{name}'{did_you_mean(name, options)}")
    values = {}
    for name, option in options.items():
        missing = given.get(name, option.default) is None and not _fits(None, hints.get(name, Any))
        if name in given and not missing:
            values[name] = _checked(f"{key}.{name}", given[name], hints.get(name, Any))
        elif missing or option.default is option.empty:
            raise AblateError(f"{key}.{name}: {owner} needs a value; set {key}.{name}=...")
        else:
            values[name] = option.default
    return values


def _checked(key: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`; an int where a float is wanted becomes one."""
    if _fits(value, hint):
        return value
    if _fits(1.0, hint) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    choices = _choices(hint)
    if choices and isinstance(value, str):
        raise check.no_choice(key, value, choices)
    quote = "quote it" if _fits("", hint) and isinstance(value, int | float) else ""
    raise check.wrong(key, value, in_words(hint), hint=quote)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (list, dict):
        return isinstance(value, origin)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, hint)


def _choices(hint: Any) -> list[str]:
    """The choices of a `Literal`, and null where None is allowed."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(choice) for choice in typing.get_args(hint)]
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    found = [choice for part in parts for choice in _choices(part)]
    return found + ["null"] * (bool(found) and type(None) in parts)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "keys and values",
    type(None): "null",
}


def in_words(hint: Any) -> str:
    """A type as a user would say it: `a whole number or null`, `one of fast, slow`."""
    kind = typing.get_origin(hint) or hint
    if kind in _WORDS:
        return _WORDS[kind]
    if kind is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return " or ".join(in_words(part) for part in typing.get_args(hint)) or getattr(hint, "__name__", str(hint))
