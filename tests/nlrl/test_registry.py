import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nlrl import registry
from nlrl.errors import ConfigError, EngineError, EngineUnavailableError, UnknownNameError


def model_folder(path: Path, **tokenizer: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def test_every_engine_name_points_at_a_class_of_its_module() -> None:
    assert set(registry.names("engine")) >= {"vllm", "http", "torch", "oracle", "scripted"}
    assert registry.load("engine", "scripted").__name__ == "ScriptedEngine"


@pytest.mark.parametrize(("kind", "name", "known"), [("engine", "vlm", "vllm"), ("prompt set", "compac", "compact")])
def test_unknown_name_lists_the_known_and_the_nearest(kind: registry.Kind, name: str, known: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Unknown {kind} '{name}'.*Did you mean '{known}'"):
        registry.load(kind, name)


def test_entry_points_add_names_but_never_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        EntryPoint("fractions", "fractions:Fraction", "nlrl.engines"),
        EntryPoint("scripted", "fractions:Fraction", "nlrl.engines"),
        EntryPoint("broken", "no_such_module:Engine", "nlrl.engines"),
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    assert registry.load("engine", "fractions").__name__ == "Fraction"
    assert registry.load("engine", "scripted").__name__ == "ScriptedEngine"
    with pytest.raises(EngineUnavailableError, match="no_such_module"):
        registry.load("engine", "broken")


def test_prompt_sets_come_with_the_folder_they_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (registry.prompt_root("compact") / "compact").is_dir()
    (tmp_path / "their_prompts" / "terse").mkdir(parents=True)
    (tmp_path / "their_prompts" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint(name, "their_prompts", "nlrl.prompts") for name in ("terse", "absent")]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    assert (registry.prompt_root("terse") / "terse").is_dir()
    with pytest.raises(ConfigError, match="no folder 'absent'"):
        registry.prompt_root("absent")
    sys.modules.pop("their_prompts", None)


def test_folder_model_and_its_prompt_set(tmp_path: Path) -> None:
    plain = registry.resolve_model(str(model_folder(tmp_path / "plain")))
    assert (plain.id, plain.source, plain.prompt_set) == ("plain", "folder", "compact")
    chatty = registry.resolve_model(str(model_folder(tmp_path / "chatty", chat_template="{{ messages }}")))
    assert chatty.prompt_set == "full"
    file = model_folder(tmp_path / "file")
    (file / "chat_template.jinja").write_text("{{ messages }}")
    assert registry.resolve_model(str(file)).prompt_set == "full"
    assert plain.fetch() is plain


def test_a_folder_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        registry.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"only \*\.safetensors"):
        registry.resolve_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no folder '\./nowhere'"):
        registry.resolve_model("./nowhere")


def test_unknown_backbone_lists_the_boxed_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"known: .*hymba"):
        registry.resolve_model("hymbaa")


def test_hub_ids_wait_until_the_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    found = registry.resolve_model("some-org/some.model")
    assert (found.source, found.path, found.prompt_set) == ("hub", None, None)
    seen: dict[str, object] = {}

    def offline(repo: str, allow_patterns: list[str]) -> str:
        seen.update(repo=repo, patterns=allow_patterns)
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(EngineError, match="cannot be reached"):
        found.fetch()
    assert seen["repo"] == "some-org/some.model"
    assert not any(str(p).endswith((".py", ".bin", ".pt")) for p in seen["patterns"])  # type: ignore[union-attr]


def test_a_fetched_hub_model_knows_its_prompt_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = model_folder(tmp_path / "snapshot", chat_template="{{ messages }}")
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, allow_patterns: str(folder))
    fetched = registry.resolve_model("org/name").fetch()
    assert (fetched.id, fetched.path, fetched.prompt_set) == ("org/name", folder, "full")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="safetensors"):
        registry.resolve_model("org/name").fetch()


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineUnavailableError, match="huggingface_hub: pip install"):
        registry.resolve_model("org/name").fetch()
