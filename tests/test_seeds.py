"""Every stream of random numbers has a name, and no two share their numbers."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from _small_decoder import random_params, small_config
from meshes import mesh_of
from test_structure import modules

from prorank_jax.config_file import parse_config
from prorank_jax.model.decoder import Decoder
from prorank_jax.scoring import stage as score_stage
from prorank_jax.seeds import key, sequence
from prorank_jax.storage import place
from prorank_jax.warmup import stage as warmup_stage

# Draws that no user's seed decides: shapes alone, a fixed sample, a test's own permutations; and what made the demo's
# world and its base model, whose towns and texts have numbers of their own.
FIXED = ("significance", "development", "demo.", "planning.", "model.hf", "export")


def test_a_stream_is_of_its_seed_and_its_name() -> None:
    streams = [(seed, name) for seed in (0, 1, 2**31 - 1) for name in ("score/adapters", "warmup/adapters", "a", "")]
    keys = {tuple(jax.random.key_data(key(*stream)).tolist()) for stream in streams}
    words = {
        tuple(sequence(*stream, *more).generate_state(2)) for stream in streams for more in ((), (0,), (0, 1), (1,))
    }
    assert len(keys) == len(streams) and len(words) == 4 * len(streams)
    # The same in every process and version: SHA-256 of "a" begins with ca978112.
    again = np.random.SeedSequence((3, 0xCA978112), spawn_key=(5,))
    assert sequence(3, "a", 5).generate_state(2).tolist() == again.generate_state(2).tolist()
    np.testing.assert_array_equal(
        jax.random.key_data(key(3, "a")),
        jax.random.key_data(jax.random.fold_in(jax.random.key(3), np.uint32(0xCA978112))),
    )


def test_every_draw_is_of_a_named_stream() -> None:
    names: list[str] = []
    for module, path in modules().items():
        if module == "seeds" or any(part in module for part in FIXED):
            continue
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"(?:random\.key|default_rng|SeedSequence|PRNGKey|RandomState)\(.*", text):
            assert re.match(r"default_rng\(sequence\(", call), f"{module}: {call}"
        names += re.findall(r"\b(?:key\(|sequence[(,])[^()\"]*\"([^\"]+)\"", text)
    assert len(names) >= 8
    assert len(names) == len(set(names))


def test_the_stages_begin_with_adapters_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the same seed they began with the same numbers."""
    learning = {"steps": 1, "lora": {"rank": 2}, "optimizer": {"learning_rate": 1e-4}}
    run = parse_config(
        {
            "seed": 3,
            "model": {"base": "somewhere"},
            "data": {"path": "somewhere"},
            "warmup": learning,
            "score": learning,
        }
    )
    decoder = Decoder(small_config(61, tied=True))
    params = random_params(decoder, 0, 0.2)
    begun: list[Any] = []

    class Begun(Exception):
        pass

    def opened(*arguments: Any, **_: Any) -> None:
        begun.append(arguments[3])
        raise Begun

    anything: Any = None
    for stage in (warmup_stage, score_stage):
        monkeypatch.setattr(stage, "open_state", opened)
    with pytest.raises(Begun):
        warmup_stage.train_warmup(
            run, decoder, params, anything, anything, mesh_of(1, 1), place(str(tmp_path / "warmup")), anything
        )
    with pytest.raises(Begun):
        score_stage.train_score(
            run, decoder, params, anything, anything, None, mesh_of(1, 1), place(str(tmp_path / "score")), anything
        )
    ours, theirs = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one) if leaf.any()]) for one in begun)
    assert ours.shape == theirs.shape
    assert (ours != theirs).all()
