"""Starting and stopping vLLM inside this process, and asking it in its own terms."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlrl.engine.base import Constraint, Request, Sampling
from nlrl.errors import EngineError, EngineUnavailableError
from nlrl.redact import hidden_secrets
from nlrl.serving import engine_args

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # bars of captured graphs; the hub's own, while it fetches, stay
    # The patterns are our own prompt sets'; a thread a request to guard against hostile ones costs a third of the time.
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
}
INSTALL = "install it: pip install 'nlrl[cpu]', or 'nlrl[gpu]' on a machine with an NVIDIA GPU"
_open: list[Any] = []
_closed: list[Any] = []
"""vLLM's own state is the process's: these two lists only mirror it, see `stop`."""


def prepare_environment(*, batch_invariant: bool = False) -> None:
    """What vLLM reads while it is imported. Values that the user has set stay."""
    if batch_invariant and Path("/proc/driver/nvidia/version").exists():
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM sets its logger up late; what it says while it is imported would come out regardless of its level.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    # torch warns while it is imported that vLLM has hidden Triton, which has no use on a CPU.
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    if "OMP_NUM_THREADS" not in os.environ and not Path("/proc/driver/nvidia/version").exists():
        # More threads than one made small models on shared cores up to eight times slower: they wait by spinning.
        os.environ["OMP_NUM_THREADS"] = "1"
        if (torch := sys.modules.get("torch")) is not None:  # it has read the variable already
            torch.set_num_threads(1)


def find_device(wanted: str) -> str:
    """The device this vLLM is built for, "cpu" or "cuda"; raises `EngineError` when it is not the wanted one."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of vLLM's, about the libraries it uses
            import vllm.v1.engine.llm_engine  # noqa: F401
            from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineUnavailableError(f"The vllm engine needs '{error.name or error}'; {INSTALL}.") from error
    found = "cpu" if current_platform.is_cpu() else "cuda" if current_platform.is_cuda() else ""
    if wanted not in ("auto", found):
        raise EngineError(f"The installed vLLM runs on '{found or 'nothing'}' here, not on '{wanted}'; {INSTALL}.")
    if not found:
        raise EngineError(f"The installed vLLM finds no device; {INSTALL}.")
    return found


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises when it refuses a single request."""
    from vllm.exceptions import VLLMValidationError

    return (ValueError, VLLMValidationError)


def start(folder: Path, device: str, seed: int, arguments: Mapping[str, Any], *, apart: bool = False) -> Any:
    """A running `LLMEngine`, its core in this process or apart; raises `EngineError` with vLLM's own reason."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from nlrl_backbones.vllm_plugin import register

    register()  # vLLM does it too, unless VLLM_PLUGINS hides the entry point or nlrl runs from a checkout
    chosen = {**engine_args(folder, device), "seed": seed, **arguments}
    fixed = {
        "load_format": "safetensors",
        "trust_remote_code": False,
        "disable_log_stats": True,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "use_tqdm_on_load": False,
    }
    try:
        # Whatever processes vLLM starts need no keys: the model is on this machine by now.
        with hidden_secrets(), warnings.catch_warnings(action="ignore"):
            engine = LLMEngine.from_engine_args(EngineArgs(**{**chosen, **fixed}), enable_multiprocessing=apart)
    except Exception as error:
        raise EngineError(
            f"vLLM cannot load the model in '{folder}': {first_line(error)}; 'nlrl doctor' may tell why."
        ) from error
    if not apart:
        # Grammars compiled by a thread would join the batch at a step that depends on the clock: runs would not repeat.
        manager = engine.engine_core.engine_core.structured_output_manager  # type: ignore[attr-defined]
        manager._use_async_grammar_compilation = False
    _open.append(engine)
    return engine


def stop(engine: Any) -> None:
    """Shut an engine down once no other one runs.

    vLLM's parallel groups belong to the process and end with the first engine that is shut down, which would break the
    others; so an engine that is closed earlier is kept and goes with the last.
    """
    _open.remove(engine)
    _closed.append(engine)
    if not _open:
        while _closed:
            _closed.pop().engine_core.shutdown()


class Parameters:
    """Requests' sampling and constraints as vLLM's own objects, each form looked at by vLLM once.

    For every request vLLM compiles its pattern to see whether it can, and copies all settings in depth: together as
    much work as the rest of the request. What was accepted once is accepted, and is copied with another seed.

    Args:
        seeded: whether requests have seeds of their own.
    """

    def __init__(self, *, seeded: bool) -> None:
        from vllm.sampling_params import SamplingParams

        class Accepted(SamplingParams, dict=True, omit_defaults=True):  # type: ignore[call-arg]
            """Settings and a form that vLLM has accepted before."""

            def verify(self, *_: Any, **__: Any) -> None:
                """They were."""

        self._type: Any = Accepted
        self._seeded = seeded
        self._accepted: dict[tuple[Sampling, Constraint | None], Any] = {}

    def of(self, request: Request) -> Any:
        """A `SamplingParams` for this request alone."""
        known = self._accepted.get(_without_seed(request))
        if known is None:
            return sampling_params(request, seeded=self._seeded)
        made = copy(known)
        made.seed = request.sampling.seed if self._seeded else None
        return made

    def accept(self, request: Request, params: Any) -> None:
        """VLLM took the request with these: its like need not be looked at again."""
        key = _without_seed(request)
        if key in self._accepted:
            return
        if len(self._accepted) >= KNOWN_FORMS:
            self._accepted.clear()
        fields = {name: getattr(params, name) for name in params.__struct_fields__}
        self._accepted[key] = self._type(**fields | {"skip_clone": True})


KNOWN_FORMS = 4096


def _without_seed(request: Request) -> tuple[Sampling, Constraint | None]:
    return replace(request.sampling, seed=None), request.constraint


def sampling_params(request: Request, *, seeded: bool) -> Any:
    """A request's sampling and constraint as vLLM wants them."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    sampling, constraint = request.sampling, request.constraint
    form = None
    if constraint is not None:
        value: Any = list(constraint.value) if constraint.kind == "choice" else constraint.value
        form = StructuredOutputsParams(**{constraint.kind: value, "disable_any_whitespace": constraint.kind == "json"})
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed if seeded else None,
        logprobs=0 if sampling.logprobs else None,  # 0 more than the drawn token's own
        structured_outputs=form,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,  # once at the end is cheaper than after each token
    )


def first_line(error: BaseException) -> str:
    """The telling line of an exception, without its final stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
