"""vLLM inside this process, or its core beside it: the default engine.

One process starts in a third of the time of vLLM's usual three and needs a third of their memory. Requests of all
coroutines are batched continuously: each `generate` hands its requests to vLLM and waits, and a single pump steps the
engine while anything is pending, giving way to the other coroutines between steps. Before it steps, every coroutine
that is ready has submitted, so the batch is full and the order of requests, hence of random draws, is the same in
every run.

Not thread-safe: an engine belongs to one thread. Starting it sets environment variables for vLLM (one process, no
usage statistics, quiet logs) unless they are set already.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.engine.local import check_fits, encode_messages, opened, renewed, settle
from nlrl.engine.vllm_setup import Parameters, find_device, first_line, prepare_environment, refusals, start, stop
from nlrl.errors import EngineError
from nlrl.registry import ResolvedModel, resolve

if TYPE_CHECKING:
    import torch


@dataclass(eq=False, slots=True)
class _Flight:
    """A request that vLLM is working on, and how many coroutines wait for it."""

    id: str
    key: tuple[Any, ...] | None
    prompt_ids: tuple[int, ...]
    constrained: bool
    future: asyncio.Future[Completion]
    waiting: int = 0


@dataclass(slots=True)
class _Counts:
    shared: int = 0
    unseeded: int = 0


class VllmEngine:
    """A model served by vLLM in this process.

    Args:
        model: what to load; a name is resolved as `nlrl.registry.resolve_model` says.
        seed: of the engine's random draws; with it, the same requests in the same order give the same replies.
        device: "auto" takes a CUDA device when this vLLM is built for one.
        apart: whether vLLM's core has a process of its own. Its start takes longer; a model that is faster than Python
            is then kept busy while this process prepares and reads. What is in a batch depends on the clock, so only
            requests that are seeded or greedy repeat, and not where a batch decides their rounding.
        batch_invariant: vLLM's mode in which a reply does not depend on what else is in the batch; CUDA only, and
            only for the attention backends that have it.
        arguments: vLLM's own engine arguments, on top of those chosen here ("max_model_len", "dtype", ...).

    Several engines may run side by side; the memory of those closed earlier is freed when the last is closed.

    Raises:
        EngineUnavailableError: vLLM, or a package it needs, is not installed.
        EngineError: the model cannot be fetched or loaded.
    """

    def __init__(
        self,
        model: ResolvedModel | str,
        *,
        seed: int = 0,
        device: str = "auto",
        apart: bool = False,
        batch_invariant: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        resolved, self._fingerprint = opened(model)
        assert resolved.path is not None
        assert resolved.prompt_set is not None
        self.prompt_set = resolved.prompt_set
        self._id, self._apart = resolved.id, apart
        prepare_environment(batch_invariant=batch_invariant)
        self._device = find_device(device)
        if batch_invariant and self._device != "cuda":
            raise EngineError("vLLM's batch-invariant mode needs an NVIDIA GPU; leave engine.batch_invariant off here.")
        self._refusals = refusals()
        self._engine: Any = start(resolved.path, self._device, seed, arguments or {}, apart=apart)
        config = self._engine.vllm_config.model_config
        self.context: int = config.max_model_len
        """Tokens of a prompt and its reply together, at most."""
        self._dtype = str(config.dtype).removeprefix("torch.")
        self._tokenizer = self._engine.get_tokenizer()
        self._flights: dict[str, _Flight] = {}
        self._by_key: dict[tuple[Any, ...], _Flight] = {}
        self._numbers = itertools.count()
        self._pump_task: asyncio.Task[None] | None = None
        self._counts = _Counts()
        self._parameters = Parameters(seeded=self._device != "cpu")
        # Samples of one question come in a row, and rendering a template takes as long as asking vLLM.
        self._encoded = lru_cache(maxsize=4096)(lambda messages: tuple(encode_messages(self._tokenizer, messages)))

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order, batched with whatever else is being asked.

        Greedy requests that are equal and in flight together are computed once.

        Raises:
            ContextLengthError: a prompt and its reply do not fit into the model's context.
            EngineError: vLLM failed, or the engine is closed.
        """
        if not requests:
            return []
        if self._engine is None:
            raise EngineError("The vLLM engine is closed; make a new one.")
        prompts = [self._prompt_ids(request) for request in requests]
        flights = [self._submit(request, ids) for request, ids in zip(requests, prompts, strict=True)]
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.create_task(self._pump())
        try:
            await asyncio.wait({flight.future for flight in flights})
        finally:
            self._leave(flights)
        for flight in flights:
            if (error := flight.future.exception()) is not None:
                raise error
        return [flight.future.result() for flight in flights]

    def describe(self) -> EngineInfo:
        """What runs, for the record."""
        from importlib.metadata import version

        import torch
        import vllm

        versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": version("transformers")}
        place = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        # Through the registry, for nlrl itself knows no kernels; our backbones run on these, others on vLLM's own.
        kernels = resolve("nlrl_kernels.dispatch:implementation_for")(torch.empty(0, device=self._device))
        notes = [f"Weights and activations are {self._dtype}; the context holds {self.context} tokens."]
        notes.append(f"Backbones of nlrl run on the {kernels} kernels.")
        if self._device == "cpu":
            notes.append(
                "Requests cannot be seeded one by one on a CPU: the engine's seed and the order of asking decide."
            )
        if self._apart:
            notes.append("vLLM's core has a process of its own: what is in a batch depends on the clock.")
        if self._counts.unseeded:
            notes.append(f"{self._counts.unseeded} requests asked for a seed of their own, which was ignored.")
        if self._counts.shared:
            notes.append(f"{self._counts.shared} requests equalled one in flight and shared its computation.")
        return EngineInfo("vllm", self._id, place, versions, tuple(notes), self._fingerprint)

    def update_weights(
        self, source: Path | str | Iterable[tuple[str, torch.Tensor]], *, seed: int | None = None
    ) -> None:
        """Replace the weights in place, from a folder of safetensors or from (name, tensor) pairs.

        The prefix cache is emptied: vLLM would go on answering from keys and values of the old weights. With `seed`
        the engine's draws begin anew from it, as if it had just been started on the new weights.

        Raises:
            EngineError: requests are in flight, the weights do not fit, or pairs are to reach another process.
        """
        if self._engine is None or self._flights:
            state = "is closed" if self._engine is None else f"is answering {len(self._flights)} requests"
            raise EngineError(f"The weights cannot be replaced: the engine {state}.")
        arguments: dict[str, Any]
        if isinstance(source, str | Path):
            arguments = {"weights_path": str(source)}
        elif self._apart:
            raise EngineError("Weights reach an engine in a process of its own from a folder alone; save them in one.")
        else:
            arguments = {"weights_iterator": iter(source)}
        try:
            self._engine.collective_rpc("reload_weights", kwargs=arguments)
        except Exception as error:
            raise EngineError(f"The weights cannot be loaded into '{self._id}': {first_line(error)}.") from error
        finally:
            self._engine.reset_prefix_cache()
            self._fingerprint = renewed(self._fingerprint, source)
        if seed is not None:
            import torch

            torch.manual_seed(seed)  # unseeded requests are drawn by torch's own generators

    async def close(self) -> None:
        """Stop the engine and free its memory; requests in flight fail. Safe to call twice."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._fail_all(EngineError("The vLLM engine was closed while it answered."))
        if self._pump_task is not None and not self._pump_task.done():
            await asyncio.wait({self._pump_task})
        stop(engine)

    def _prompt_ids(self, request: Request) -> tuple[int, ...]:
        ids = self._encoded(request.messages)
        check_fits(len(ids), request, self.context, self._id)
        return ids

    def _submit(self, request: Request, prompt_ids: tuple[int, ...]) -> _Flight:
        greedy = request.sampling.temperature == 0
        key = (request.messages, request.sampling, request.constraint) if greedy else None
        if key is not None and (same := self._by_key.get(key)) is not None:
            same.waiting += 1
            self._counts.shared += 1
            return same
        if request.sampling.seed is not None and self._device == "cpu":
            self._counts.unseeded += 1
        future = asyncio.get_running_loop().create_future()
        number, constrained = str(next(self._numbers)), request.constraint is not None
        flight = _Flight(number, key, prompt_ids, constrained, future, 1)
        try:
            prompt = {"type": "token", "prompt_token_ids": list(prompt_ids)}
            params = self._parameters.of(request)
            self._engine.add_request(flight.id, prompt, params)
            self._parameters.accept(request, params)
        except self._refusals as error:  # of this request alone, a pattern it cannot compile for instance
            future.set_result(Completion("", finish_reason="error", error=f"vLLM refuses it: {first_line(error)}."))
            return flight
        self._flights[flight.id] = flight
        if key is not None:
            self._by_key[key] = flight
        return flight

    async def _pump(self) -> None:
        """Step the engine until nothing is pending."""
        await settle()
        while self._flights and self._engine is not None:
            try:
                outputs = self._engine.step()
            except Exception as error:
                self._fail_all(EngineError(f"vLLM stopped: {first_line(error)}; see 'nlrl doctor'."), error)
                return
            finished = [output for output in outputs if output.finished]
            for output in finished:
                self._land(output)
            if self._flights and not self._engine.has_unfinished_requests():
                self._fail_all(EngineError(f"vLLM lost {len(self._flights)} requests; report this."))
            # Nobody can have become ready when nothing finished, but the terminal and Ctrl-C want their turn.
            await (settle() if finished else asyncio.sleep(0))

    def _land(self, output: Any) -> None:
        """A request is done."""
        flight = self._flights.get(output.request_id)
        if flight is None:
            return
        self._forget(flight)
        answer = output.outputs[0]
        ids = tuple(answer.token_ids)
        finish, error = answer.finish_reason, None
        if finish not in ("stop", "length"):
            finish, error = "error", f"vLLM ended the reply for the reason '{finish}'."
        completion = Completion(
            text=self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            token_ids=ids,
            prompt_token_ids=flight.prompt_ids,
            finish_reason=finish,
            error=error,
            prompt_tokens=len(flight.prompt_ids),
            completion_tokens=len(ids),
            logprobs=tuple(here[token].logprob for token, here in zip(ids, answer.logprobs or (), strict=False)),
            constrained=True if flight.constrained and finish == "stop" else None,
        )
        flight.future.set_result(completion)

    def _leave(self, flights: Iterable[_Flight]) -> None:
        """A caller waits no longer; a request that nobody waits for is taken back."""
        for flight in flights:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.future.done():
                self._forget(flight)
                flight.future.cancel()
                if self._engine is not None:
                    self._engine.abort_request([flight.id])

    def _forget(self, flight: _Flight) -> None:
        self._flights.pop(flight.id, None)
        if flight.key is not None:
            self._by_key.pop(flight.key, None)

    def _fail_all(self, error: EngineError, cause: Exception | None = None) -> None:
        error.__cause__ = cause
        for flight in list(self._flights.values()):
            self._forget(flight)
            flight.future.set_exception(error)
