"""Without a GPU, Triton kernels run in Triton's interpreter; the switch must be set before triton is imported."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
