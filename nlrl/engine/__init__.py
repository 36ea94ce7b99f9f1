"""The engines: `base` states the protocol, `check` checks it, each other module is one way of asking a model.

Importing this package loads no engine; `nlrl.registry.load("engine", id)` does.
"""

ENGINES = {
    "http": "nlrl.engine.http:HttpEngine",
    "oracle": "nlrl.engine.oracle:OracleEngine",
    "scripted": "nlrl.engine.scripted:ScriptedEngine",
    "torch": "nlrl.engine.torch:TorchEngine",
    "vllm": "nlrl.engine.vllm:VllmEngine",
}
