"""What was run, in words: model, data, the settings of both stages, software, hardware and time."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import yaml

from prorank_jax.card import run_record
from prorank_jax.config import ExpectedConfig, GrpoConfig, RunConfig, ScoreConfig, StageConfig, SupervisedConfig
from prorank_jax.reporting.folder import RunFiles, Stage

Facts = dict[str, str]


class About(NamedTuple):
    """Facts under headings, and the whole configuration as YAML, without the paths of the machine."""

    groups: dict[str, Facts]
    configuration: str


def about(run: RunFiles) -> About:
    """What the run folder knows of the run; what it does not know is left out."""
    shown = run_record(run.config, "", 0).configuration or {}
    groups = {"Run": _run(run), "Model and prompt": _model(run.config, shown), "Data": _data(run.config, shown)}
    if run.config.warmup is not None:
        groups["Prompt warmup"] = _warmup(run.config.warmup) | _progress(run.stages["warmup"], run.config.warmup)
    if run.config.score is not None:
        groups["Score learning"] = _score(run.config.score) | _progress(run.stages["score"], run.config.score)
    return About(groups, yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))


def duration(seconds: float) -> str:
    """`41 s`, `2 min 41 s`, `3 h 7 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def seconds_taken(run: RunFiles) -> float:
    """Seconds of both stages; of the demo, of all that it did."""
    if isinstance(whole := run.summary.get("seconds"), int | float):
        return float(whole)
    return sum(float(stage.metrics[-1].get("seconds") or 0) for stage in run.stages.values() if stage.metrics)


def _run(run: RunFiles) -> Facts:
    began, facts = run.began, {}
    if isinstance(when := began.get("began"), str):
        facts["began"] = _date(when)
    facts["time taken"] = f"{duration(seconds_taken(run))}" + ("" if run.summary else ", both stages")
    facts["seed"] = str(run.config.seed)
    if began:
        devices, kind = began.get("devices"), began.get("device_kind")
        plain = (devices, kind) == (1, "cpu")
        facts["hardware"] = f"CPU, {began.get('cpus')} cores" if plain else f"{devices} × {kind}"
        facts["system"] = f"{began.get('system')}"
        if began.get("processes", 1) != 1:
            facts["processes"] = str(began["processes"])
        facts["software"] = ", ".join(
            f"{title} {began.get(name)}"
            for name, title in {"prorank_jax": "prorank_jax", "jax": "JAX", "python": "Python"}.items()
        )
    elif run.record is not None:
        facts["software"] = f"prorank_jax {run.record.version}"
    if run.record is not None and run.record.stage:
        facts["exported model"] = f"step {run.record.step} of {_STAGES.get(run.record.stage, run.record.stage)}"
    return facts


_STAGES = {"warmup": "prompt warmup", "score": "score learning"}


def _date(when: str) -> str:
    try:
        return datetime.fromisoformat(when).strftime("%d %B %Y, %H:%M UTC")
    except ValueError:
        return when


def _model(config: RunConfig, shown: Mapping[str, Any]) -> Facts:
    facts = {"base model": shown["model"]["base"], "computed in": config.model.dtype}
    facts["prompt"] = f"at most {config.prompt.max_length} tokens"
    if config.prompt.order:
        facts["shown first"] = config.prompt.order.removesuffix("_first")
    if config.prompt.instruction:
        facts["instruction"] = config.prompt.instruction
    return facts


def _data(config: RunConfig, shown: Mapping[str, Any]) -> Facts:
    data = shown["data"]
    facts = {"training data": f"{data['path']}, split {data['split']}", "learnt target": data["target"]}
    facts["hard negatives"] = f"{data['candidates']}, depth {data['depth']}"
    if data["mix"]:
        facts["mixed with"] = ", ".join(f"{source['path']} (weight {source['weight']:g})" for source in data["mix"])
    if config.score and config.score.dev:
        dev = shown["score"]["dev"]
        facts["held-out queries"] = f"{dev['path'] or data['path']}, split {dev['split']}"
    return facts


def _warmup(config: GrpoConfig | ExpectedConfig | SupervisedConfig) -> Facts:
    if isinstance(config, SupervisedConfig):
        return {"method": "supervised", "a step": f"{config.prompts_per_step} prompts"} | _common(config)
    if isinstance(config, GrpoConfig):
        facts = {
            "method": "GRPO",
            "a step": f"{config.prompts_per_step} prompts × {config.group_size} completions",
            "completion": f"at most {config.max_new_tokens} tokens, temperature {config.temperature:g}",
        }
    else:
        facts = {"method": "GRPO's limit, computed exactly", "a step": f"{config.prompts_per_step} prompts"}
    facts["rewards"] = ", ".join(f"{name} × {weight:g}" for name, weight in config.rewards.items())
    facts["advantage"] = config.advantage
    if config.entropy:
        facts["entropy weight"] = f"{config.entropy:g}"
    if config.beta:
        facts["KL weight"] = f"{config.beta:g}"
    return facts | _common(config)


def _score(config: ScoreConfig) -> Facts:
    facts = {
        "loss": ", ".join(f"{name} × {weight:g}" for name, weight in config.loss.items()),
        "a step": f"{config.queries_per_step} queries × {config.documents_per_query} documents",
    }
    if config.anchor:
        facts["anchor weight"] = f"{config.anchor:g}"
    return facts | _common(config)


def _common(config: StageConfig) -> Facts:
    facts = {"learning rate": f"{config.optimizer.learning_rate:g}"}
    if config.lora:
        facts["adapters"] = f"LoRA, rank {config.lora.rank}, alpha {config.lora.alpha:g}"
    return facts


def _progress(stage: Stage, config: StageConfig) -> Facts:
    if not stage.metrics:
        return {"steps": f"none of {config.steps} yet"}
    last = stage.metrics[-1]
    facts = {"steps": f"{last['step']} of {config.steps}"}
    if isinstance(last.get("seconds"), int | float):
        facts["time taken"] = duration(last["seconds"])
    rates = [row["tokens_per_second"] for row in stage.metrics if isinstance(row.get("tokens_per_second"), int | float)]
    if rates:
        facts["speed"] = f"{sorted(rates)[len(rates) // 2]:,.0f} tokens/s (median)"
    return facts
