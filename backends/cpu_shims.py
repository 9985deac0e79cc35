"""What the engines' packages lack on a machine without a GPU: ``activate`` gives it to a process and its children.

PyPI's torchvision is built for CUDA: beside a CPU torch its import fails for want of two operators. SGLang imports its
compiled kernels, which exist for GPUs, when it is imported, and never calls them on a CPU. Neither is touched where the
real thing is there. Imports nothing of ours: children load this file by its path (``cpu_site/sitecustomize.py``).
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

KERNELS = "sgl_kernel"
OPERATORS = ("nms", "qnms")

_kept: list[object] = []
"""A library's operators live as long as it does."""


def activate(environ: MutableMapping[str, str]) -> None:
    """For this process, and for every Python that it starts with ``environ``."""
    folder = str(Path(__file__).with_name("cpu_site"))
    paths = environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, paths)])
    install()


def install() -> None:
    if not any(isinstance(finder, ShimFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ShimFinder(has_kernels=importlib.util.find_spec(KERNELS) is not None))


class ShimFinder(importlib.abc.MetaPathFinder):
    """Asked before every first import: gives the kernels' stub, and prepares torchvision's."""

    def __init__(self, *, has_kernels: bool) -> None:
        self._has_kernels = has_kernels

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not _kept and needs_operators():
            define_operators()
        if fullname.partition(".")[0] == KERNELS and not self._has_kernels:
            return importlib.machinery.ModuleSpec(fullname, StubLoader(), is_package=True)
        return None


def needs_operators() -> bool:
    """Whether a torchvision for CUDA is going to meet a torch without."""
    try:
        versions = [importlib.metadata.version(name) for name in ("torch", "torchvision")]
    except importlib.metadata.PackageNotFoundError:
        return False
    return [version.endswith("+cpu") for version in versions] == [True, False]


def define_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


class StubLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class StubModule(types.ModuleType):
    """Has every name; none can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{self._name} is a kernel for GPUs, and this machine has none")
