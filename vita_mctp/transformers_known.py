"""Makes VITA-Audio's models known to transformers' AutoConfig and AutoModelForCausalLM, at no cost to others.

Their classes need torch, and `import vita_mctp` imports nothing heavy. So what is registered, behind the import of
AutoConfig, is a stand-in by `model_type`: when a configuration is made of it, the model's classes are imported and
registered instead. Every way to a model leads over its configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPES = ("qwen2_mtp", "qwen2_mtp_sensevoice")
_AUTO = "transformers.models.auto.configuration_auto"


def register_models() -> None:
    """Now, or behind the import of AutoConfig."""
    if (auto := sys.modules.get(_AUTO)) is not None and hasattr(auto, "AutoConfig"):
        _register(auto)
    else:
        sys.meta_path.insert(0, _Finder())


def _register(auto: ModuleType) -> None:
    for model_type in MODEL_TYPES:
        stand_in = type("StandIn", (_StandIn,), {"model_type": model_type})
        auto.AutoConfig.register(model_type, stand_in, exist_ok=True)


class _StandIn:
    """What transformers asks of a configuration's class, answered by the class itself."""

    model_type = ""

    def __new__(cls, *arguments: Any, **values: Any) -> Any:
        return cls._real()(*arguments, **values)

    @classmethod
    def from_dict(cls, *arguments: Any, **values: Any) -> Any:
        return cls._real().from_dict(*arguments, **values)

    @classmethod
    def _real(cls) -> Any:
        model_class = import_module("vita_mctp.models.registry").family_of(cls.model_type).model_class
        import_module("vita_mctp.models.strict").make_known(model_class)
        return model_class.config_class


class _Finder(MetaPathFinder):
    """Finds AutoConfig's module as ever, once, with a loader that goes on to `_register`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        if (spec := PathFinder.find_spec(name, path, target)) is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, theirs: Loader) -> None:
        self._theirs = theirs

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._theirs
        self._theirs.exec_module(module)
        _register(module)
