"""From a grid to cells: what each will train, what it costs, and what makes it itself. Nothing is loaded or started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from deepmlf_llm.backbones import cpu_or_cuda_dtype, load_tokenizer
from deepmlf_llm.backbones.loading import attention_kernel
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available
from deepmlf_llm.backbones.toys import TOYS
from deepmlf_llm.errors import BaseModelError, ConfigError, DeepMLFError, Problems
from deepmlf_llm.fusion.verbalised import with_token_ids
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.study.baseline_cells import KEPT, baseline_code, baseline_settings, baseline_size
from deepmlf_llm.study.cells import Plan, PlannedCell
from deepmlf_llm.study.code_version import code_version, combined
from deepmlf_llm.study.configurations import NOTHING, OWN
from deepmlf_llm.study.grid import BASELINE, Backbone, Grid
from deepmlf_llm.training.assemble import method_config, resolve_base_model, selecting_metric
from deepmlf_llm.training.data import TrainingData, chosen_modalities, load_data, take_fraction, tokenised
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.run_keys import TEXT_ALONE
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trainer_arguments import read_deepspeed


def make_plan(grid: Grid, recipe: Path) -> Plan:
    """Checks and sizes every cell.

    Args:
        grid: what to run.
        recipe: the training recipe that cells run.

    Raises:
        DeepMLFError: a setting, base model or data set that cannot be; one message names all that are at fault.
    """
    return _Planner(grid, code_version(recipe)).plan()


class _Planner:
    def __init__(self, grid: Grid, code: str) -> None:
        self.grid = grid
        self.plan_ = Plan(grid, code, [], {exclusion.name: 0 for exclusion in grid.exclude})
        self.problems = Problems(ConfigError, f"study {grid.name!r}")
        self.data: dict[str, TrainingData] = {}
        self.tokenizers: dict[str, Any] = {}
        self.sizes: dict[str, dict[str, Any]] = {}

    def plan(self) -> Plan:
        names: set[str] = set()
        for settings, values, own, seed in self._combinations():
            try:
                cell = self._cell(settings, values, own, seed)
            except DeepMLFError as error:
                self._refuse(str(error))
                continue
            if cell.fingerprint not in names:  # two backbones may have the same stand-in
                names.add(cell.fingerprint)
                self.plan_.cells.append(cell)
        self.problems.check(
            bool(self.plan_.cells) or bool(self.problems.messages), "the grid is empty: every cell is excluded"
        )
        self.problems.raise_if_any()
        return self.plan_

    def _refuse(self, message: str) -> None:
        if message not in self.problems.messages:
            self.problems.check(False, message)

    def _combinations(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[str], int]]:
        """Settings of a cell, those that its row names, the names of those that its base model brings, its seed."""
        for backbone, values, seed in self.grid.combinations():
            try:
                there = self._available(backbone)
            except BaseModelError as error:
                self._refuse(str(error))
                continue
            settings = {**self.grid.fixed, **there.own, **values, "seed": seed, **there.settings()}
            by = next((exclusion.name for exclusion in self.grid.exclude if exclusion.covers(settings)), None)
            if by is None:
                yield settings, values, [name for name in there.own if name not in values], seed
            else:
                self.plan_.excluded[by] += 1

    def _available(self, backbone: Backbone) -> Backbone:
        name = resolve_base_model(backbone.base_model)
        if name != backbone.base_model:
            backbone = replace(backbone, base_model=name)
        if backbone.otherwise is None or name in TOYS or (name == SMOLLM2 and smollm2_available()):
            return backbone
        try:
            self._size_of(backbone)
        except BaseModelError:
            other = backbone.otherwise
            random = " (random weights)" if other.base_model in TOYS else ""
            note = f"{_words(other)}{random} stands in for {_words(backbone)}, which is not there."
            if note not in self.plan_.notes:
                self.plan_.notes.append(note)
            return self._available(other)
        return backbone

    def _size_of(self, backbone: Backbone) -> None:
        base_model_shape(backbone.base_model, backbone.num_layers, backbone.revision)

    def _cell(self, given: dict[str, Any], values: dict[str, Any], own: list[str], seed: int) -> PlannedCell:
        if BASELINE in values:
            return self._baseline(given, seed)
        settings = RunSettings.from_dict(given, "settings")
        data = self._data(settings)
        settings = selecting_metric(settings, data.rules)
        size = self._size(settings, data)
        base = resolve_base_model(settings.base_model)
        key = settings.fingerprint(self.grid.processes, base, data.fingerprint)
        fingerprint = combined(key, self.plan_.code)
        rows = len(take_fraction(data.train, settings.data_fraction))  # type: ignore[arg-type]
        facts = {"base": _base_name(base), "layers": size["layers"]}
        return PlannedCell(
            name=_cell_name(given, size["layers"], seed, fingerprint),
            fingerprint=fingerprint,
            settings=given,
            values={
                **facts,
                **_placed(size["blocks"], given.get("fusion_layers", "even:7")),
                **self._values(settings, data, given, own),
            },
            seed=seed,
            processes=self.grid.processes,
            trainable=size["trainable"],
            total=size["total"],
            step_flops=size["step_flops"],
            steps=settings.planned_steps(rows, self.grid.processes).total,
            geometry=size["geometry"],
            text_key=size["text_key"],
        )

    def _values(
        self, settings: RunSettings, data: TrainingData, given: dict[str, Any], own: list[str]
    ) -> dict[str, Any]:
        """Every setting that any row names, so that cells of different rows can be compared; what a base model brings
        is its own, but for where MM Blocks sit."""
        names = dict.fromkeys(name for row in self.grid.rows for name in row if name not in ("backbone", BASELINE))
        found = {name: given.get(name, all_keys()[name].default) for name in names}
        found |= {name: OWN for name in names if name in own and name != "fusion_layers"}
        if "modalities" in found:
            found["modalities"] = list(chosen_modalities(settings, data)) or [NOTHING]
        return found

    def _baseline(self, given: dict[str, Any], seed: int) -> PlannedCell:
        settings = baseline_settings(given)
        data = self._data(settings.as_run())
        if settings.kind == "bam" and not chosen_modalities(settings.as_run(), data):
            raise ConfigError("baseline=bam needs a modality, and there is none")
        base = resolve_base_model(settings.base_model)
        shape = base_model_shape(base, settings.num_layers, settings.revision)
        key = repr((base, settings.to_dict()))
        if key not in self.sizes:
            self.sizes[key] = baseline_size(settings, shape, data)
        size = self.sizes[key]
        layers = shape.config.get_text_config().num_hidden_layers
        kept = {name: value for name, value in given.items() if name in KEPT}
        fingerprint = combined(key, data.fingerprint, baseline_code(), self.plan_.code)
        return PlannedCell(
            name=_plain_name(f"{Path(base).name}-{layers}l-{settings.kind}-s{seed}-{fingerprint[:8]}"),
            fingerprint=fingerprint,
            settings=kept,
            values={"base": _base_name(base), "layers": layers, BASELINE: settings.kind},
            seed=seed,
            processes=1,
            text_key=fingerprint,
            **size,
        )

    def _data(self, settings: RunSettings) -> TrainingData:
        if settings.data not in self.data:
            self.data[settings.data] = load_data(settings)
        return self.data[settings.data]

    def _size(self, settings: RunSettings, data: TrainingData) -> dict[str, Any]:
        """Parameters and FLOPs; the same for all seeds."""
        same = {n: v for n, v in settings.to_dict().items() if n not in ("seed", "data_seed", "data_fraction")}
        key = repr(sorted(same.items(), key=lambda item: item[0]))
        if key not in self.sizes:
            self.sizes[key] = self._measured(settings, data)
        return self.sizes[key]

    def _measured(self, settings: RunSettings, data: TrainingData) -> dict[str, Any]:
        import torch

        base = resolve_base_model(settings.base_model)
        config = method_config(settings, data)
        if config.readout != "heads":
            config = with_token_ids(config, load_tokenizer(base, settings.revision))
        attention_kernel(settings.attn_implementation, cpu_or_cuda_dtype(settings.dtype))
        read_deepspeed(settings)
        shape = base_model_shape(base, settings.num_layers, settings.revision)
        with torch.device("meta"):
            model = DeepMLFModel(shape, config)
        model.enable_text_cache(settings.text_cache if settings.text_cache == "none" else "memory")  # refuses if wrong
        geometry = StepGeometry(
            utterances=settings.step_size(self.grid.processes),
            text_tokens=self._text_tokens(base, settings, config.text, data),
            frames={name: _median_frames(data, name) for name in config.modalities},
        )
        stack, fused = model.active_stack, model.fused_decoder
        reach = (fused.text_depth(config, stack), fused.lowest_kept(config, stack), fused.running(config, stack).end)
        parameters = list(model.parameters())
        lm = (base, settings.num_layers, settings.revision, settings.quantization, settings.dtype)
        text = (*lm, *reach) if settings.lm_init == "pretrained" else (*lm, settings.lm_init, *reach)
        noted = (stack.noted_layers,) if stack.noted_layers else ()
        return {
            "layers": fused.decoder.num_layers,
            "blocks": len(stack.layers),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "total": sum(p.numel() for p in parameters),
            "step_flops": step_flops(model, geometry, settings.text_cache != "none"),
            "geometry": asdict(geometry),
            "text_key": repr((*text, *noted, settings.text_cache_dtype, settings.data, config.text.template)),
        }

    def _text_tokens(self, base: str, settings: RunSettings, text: Any, data: TrainingData) -> int:
        key = repr((base, settings.revision, settings.data, text.max_tokens, text.template))
        if key not in self.tokenizers:
            train = tokenised(data.train, "train", load_tokenizer(base, settings.revision), text)
            self.tokenizers[key] = round(median(len(ids) for ids in train.input_ids))
        return int(self.tokenizers[key])


def _median_frames(data: TrainingData, modality: str) -> int:
    rows = len(data.train)  # type: ignore[arg-type]
    sample = [len(data.train[i][modality]) for i in range(0, rows, max(1, rows // 200))]
    return max(1, round(median([frames for frames in sample if frames] or [1])))


def _base_name(base: str) -> str:
    """As the report calls it: of a file or directory the last part of its path."""
    return Path(base).name if Path(base).expanduser().exists() else base


def _words(backbone: Backbone) -> str:
    cut = f", {backbone.num_layers} layers" if backbone.num_layers else ""
    return f"{backbone.base_model}{cut}"


def _placed(blocks: int, placement: Any) -> dict[str, Any]:
    kind = placement.partition(":")[0] if isinstance(placement, str) else "listed"
    return {"blocks": blocks, "placement": kind}


def _cell_name(given: Mapping[str, Any], layers: int, seed: int, fingerprint: str) -> str:
    placement = given.get("fusion_layers", "even:7")
    placed = placement if isinstance(placement, str) else "at" + ".".join(map(str, placement))
    base = Path(str(given["base_model"])).name
    alone = "-text" if given.get("modalities") == TEXT_ALONE else ""
    words = f"{base}-{layers}l-{placed}-n{given.get('num_fusion_tokens', 8)}{alone}-s{seed}-{fingerprint[:8]}"
    return _plain_name(words)


def _plain_name(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", words)
