"""Every Python that a worker without a GPU starts runs this first: it loads backends/cpu_shims.py by its path."""

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parent.parent / "cpu_shims.py"
_spec = importlib.util.spec_from_file_location("ichat_cpu_shims", _path)
if _spec is not None and _spec.loader is not None:
    _shims = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_shims)
    _shims.install()
