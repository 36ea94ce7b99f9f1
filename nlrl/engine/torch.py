"""transformers' own `generate` as an engine: slow, and independent of vLLM, so that one can be checked by the other.

Requests that wait together are batched, padded on the left. Constraints are enforced through xgrammar when it is
installed; without it the model replies freely and the checks above the engine do their work.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from nlrl.engine.base import Completion, Constraint, EngineInfo, Request, Sampling
from nlrl.engine.local import encode_request, opened, renewed, settle
from nlrl.errors import EngineError, EngineUnavailableError
from nlrl.model_files import check_model_folder
from nlrl.registry import ResolvedModel

ENDLESS = 1 << 20
"""Context of a model without positions, which states no limit."""
Job = tuple[Request, list[int], asyncio.Future[Completion]]


class TorchEngine:
    """A model run by transformers in this process.

    Args:
        model: what to load; a name is resolved as `nlrl.registry.resolve_model` says.
        seed: of the engine's random draws.
        device: "auto" takes a CUDA device when there is one.
        batch_size: most requests in one call of `generate`.

    Raises:
        EngineUnavailableError: torch or transformers is not installed.
        EngineError: the model cannot be fetched or loaded.
    """

    def __init__(
        self, model: ResolvedModel | str, *, seed: int = 0, device: str = "auto", batch_size: int = 32
    ) -> None:
        resolved, self._fingerprint = opened(model)
        assert resolved.prompt_set is not None
        self.prompt_set = resolved.prompt_set
        self._id = resolved.id
        self._model: Any
        self._tokenizer: Any
        self._model, self._tokenizer = _load(resolved, device)
        self.context: int = getattr(self._model.config, "max_position_embeddings", ENDLESS)
        """Tokens of a prompt and its reply together, at most."""
        self._batch_size = batch_size
        self._rng = random.Random(seed)
        self._waiting: list[Job] = []
        self._pump_task: asyncio.Task[None] | None = None
        self._unseeded = 0
        ends = self._model.generation_config.eos_token_id
        self._end_ids: list[int] = [self._tokenizer.eos_token_id] if ends is None else list(_as_list(ends))
        self._grammars = _Grammars(self._model, self._tokenizer, self._end_ids) if find_spec("xgrammar") else None

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order.

        Raises:
            ContextLengthError: a prompt and its reply do not fit into the model's context.
            EngineError: the engine is closed, or the model failed.
        """
        if self._model is None:
            raise EngineError("The torch engine is closed; make a new one.")
        prompts = [encode_request(self._tokenizer, request, self.context, self._id) for request in requests]
        loop = asyncio.get_running_loop()
        jobs: list[Job] = [(r, ids, loop.create_future()) for r, ids in zip(requests, prompts, strict=True)]
        self._waiting.extend(jobs)
        if jobs and (self._pump_task is None or self._pump_task.done()):
            self._pump_task = asyncio.create_task(self._pump())
        return list(await asyncio.gather(*(future for _, _, future in jobs)))

    def describe(self) -> EngineInfo:
        """What runs, for the record."""
        versions = {name: version(name) for name in ("torch", "transformers")}
        notes = ["Requests cannot be seeded one by one; the engine's seed and the order of asking decide."]
        if self._unseeded:
            notes.append(f"{self._unseeded} requests asked for a seed of their own, which was ignored.")
        if self._grammars is None:
            notes.append("Replies are not constrained: xgrammar is not installed.")
        device = "none" if self._model is None else str(self._model.device)
        return EngineInfo("torch", self._id, device, versions, tuple(notes), self._fingerprint)

    def update_weights(self, source: Path | str | Iterable[tuple[str, Any]], *, seed: int | None = None) -> None:
        """Replace the weights in place, from a folder of safetensors or from (name, tensor) pairs.

        With `seed` the engine's draws begin anew from it, as if it had just been started on the new weights.

        Raises:
            EngineError: requests are in flight, or the weights do not fit the model.
        """
        if self._model is None or self._waiting or not (self._pump_task is None or self._pump_task.done()):
            state = "is closed" if self._model is None else "is answering"
            raise EngineError(f"The weights cannot be replaced: the engine {state}.")
        try:
            new = _weights(Path(source)) if isinstance(source, str | Path) else dict(source)
            self._model.load_state_dict(new)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise EngineError(f"The weights cannot be loaded into '{self._id}': {reason[:300]}") from error
        finally:
            self._fingerprint = renewed(self._fingerprint, source)
        if seed is not None:
            self._rng = random.Random(seed)

    async def close(self) -> None:
        """Let go of the model; safe to call twice."""
        for _, _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._model = None

    async def _pump(self) -> None:
        """Answer what waits, a batch at a time, until nothing does."""
        await settle()
        while self._waiting:
            # A caller that gave up cancelled its futures. Sorting is stable: equal settings keep the order of asking.
            jobs = sorted((job for job in self._waiting if not job[2].done()), key=lambda job: _settings(job[0]))
            self._waiting.clear()
            for _, group in groupby(jobs, key=lambda job: _settings(job[0])):
                alike = list(group)
                for first in range(0, len(alike), self._batch_size):
                    self._answer(alike[first : first + self._batch_size])
                    await asyncio.sleep(0)
            await settle()

    def _answer(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job[2].done()]
        if not jobs:
            return
        self._unseeded += sum(request.sampling.seed is not None for request, _, _ in jobs)
        try:
            completions = self._complete([request for request, _, _ in jobs], [ids for _, ids, _ in jobs])
        except Exception as error:
            failure = EngineError(f"The model failed: {type(error).__name__}: {str(error)[:200]}.")
            failure.__cause__ = error
            for _, _, future in jobs:
                future.set_exception(failure)
            return
        for (request, _, future), completion in zip(jobs, completions, strict=True):
            finished = request.constraint is not None and completion.finish_reason == "stop"
            future.set_result(replace(completion, constrained=self._grammars is not None if finished else None))

    def _complete(self, requests: list[Request], prompts_B: list[list[int]]) -> list[Completion]:
        """One batch of requests with equal settings; axes B request, T token."""
        import torch

        width = max(map(len, prompts_B))
        padding = self._tokenizer.pad_token_id
        ids_BT = torch.tensor([[padding] * (width - len(ids)) + ids for ids in prompts_B], device=self._model.device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts_B])
        processors: list[Any] = []
        if self._grammars is not None and any(request.constraint for request in requests):
            processors.append(self._grammars.processor([request.constraint for request in requests], width))
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._rng.getrandbits(63))
            drawn_BT = self._model.generate(
                ids_BT,
                attention_mask=mask_BT.to(self._model.device),
                generation_config=self._generation_config(requests[0].sampling),
                logits_processor=processors,
            )[:, width:].tolist()
        return [self._completion(ids, drawn) for ids, drawn in zip(prompts_B, drawn_BT, strict=True)]

    def _completion(self, prompt: list[int], drawn: list[int]) -> Completion:
        end = next((place for place, token in enumerate(drawn) if token in self._end_ids), None)
        ids = drawn if end is None else drawn[: end + 1]
        return Completion(
            text=self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            token_ids=tuple(ids),
            prompt_token_ids=tuple(prompt),
            finish_reason="length" if end is None else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(ids),
        )

    def _generation_config(self, sampling: Sampling) -> Any:
        from transformers import GenerationConfig

        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=self._end_ids,
            **(drawn if sampling.temperature > 0 else {"do_sample": False}),
        )


class _Grammars:
    """Constraints compiled by xgrammar, each once."""

    def __init__(self, model: Any, tokenizer: Any, end_ids: list[int]) -> None:
        import xgrammar

        size = model.config.vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=end_ids)
        self._compiler = xgrammar.GrammarCompiler(info)
        self._size = size

    def processor(self, constraints_B: Sequence[Constraint | None], prompt_width: int) -> Callable[[Any, Any], Any]:
        """A logits processor that keeps each row of a batch to its constraint."""
        import xgrammar

        matchers_B = [None if c is None else xgrammar.GrammarMatcher(self._compile(c)) for c in constraints_B]
        bitmask_BV = xgrammar.allocate_token_bitmask(len(matchers_B), self._size)

        def process(ids_BT: Any, scores_BV: Any) -> Any:
            bitmask_BV.fill_(-1)
            for row, matcher in enumerate(matchers_B):
                if matcher is None or matcher.is_terminated():
                    continue
                if ids_BT.shape[1] > prompt_width:
                    matcher.accept_token(int(ids_BT[row, -1]))
                if not matcher.is_terminated():
                    matcher.fill_next_token_bitmask(bitmask_BV, row)
            xgrammar.apply_token_bitmask_inplace(scores_BV, bitmask_BV.to(scores_BV.device))
            return scores_BV

        return process

    def _compile(self, constraint: Constraint) -> Any:
        if constraint.kind == "json":
            return self._compiler.compile_json_schema(str(constraint.value), any_whitespace=False)
        if constraint.kind == "choice":
            return self._compiler.compile_regex(f"({'|'.join(map(re.escape, constraint.value))})")
        return self._compiler.compile_regex(str(constraint.value))


def _load(resolved: ResolvedModel, device: str) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        import nlrl_backbones  # noqa: F401  makes our architectures known to transformers
    except ImportError as error:
        raise EngineUnavailableError(
            f"The torch engine needs '{error.name}'; install it: pip install 'nlrl[train]'."
        ) from error
    assert resolved.path is not None
    logging.disable_progress_bar()  # it would be drawn into the live view
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved.path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            resolved.path,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32 if place == "cpu" else "auto",
        )
        model = model.to(place).eval()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"transformers cannot load the model in '{resolved.path}': {reason[:300]}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _weights(folder: Path) -> dict[str, Any]:
    """All of a model's weights under the names of its class, tied ones twice."""
    from transformers import AutoModelForCausalLM

    check_model_folder(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    return model.state_dict()


def _settings(request: Request) -> tuple[float, float, int]:
    """What one call of `generate` has in common for all its rows."""
    sampling = request.sampling
    return (sampling.temperature, sampling.top_p, sampling.max_tokens)


def _as_list(ids: int | list[int]) -> list[int]:
    return [ids] if isinstance(ids, int) else ids
