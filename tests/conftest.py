"""Without a GPU, Triton kernels run in Triton's interpreter; the switch must be set before triton is imported."""

import os
import shutil
from pathlib import Path

if shutil.which("nvidia-smi") is None and not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
