"""`compare`: which directions are good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import runtime
from ..compare import Comparison, claims, claims_text, load_grid, markdown, summarise, tables, write_tables
from ..errors import UserError
from .words import HERE, Machine, parse_seeds


def compare(
    *,
    preset: str | None = None,
    config: Path | None = None,
    out: Path = Path("comparison"),
    generators: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    metrics: tuple[str, ...] = (),
    seeds: str | None = None,
    code_seeds: str | None = None,
    calibrations: tuple[str, ...] = (),
    k: int | None = None,
    reader: str | None = None,
    oracle: str | None = None,
    null: int | None = None,
    machine: Machine = HERE,
) -> None:
    """Compare methods on generators, at four equal strengths; a run that was stopped goes on where it was.

    Args:
        preset: a grid to begin with: quick takes 4 methods beside the baselines, on the bundled generator.
        config: a YAML file of a grid; its keys are named as the flags below.
        out: the folder for results.jsonl, tables/ and report/; what it holds is used again.
        generators: names, folders or files. Networks that differ in their training seed alone form a group in YAML.
        methods: such as sefa or "ganspace(at=layer3)".
        metrics: such as latent_orthogonality_v1.
        seeds: of the methods, such as 0-4.
        code_seeds: of the metrics.
        calibrations: any of native, change, attribute, realism; all by default.
        k: directions of each method.
        reader: reads attributes.
        oracle: a generator whose coordinates are the true factors.
        null: random directions behind each p-value.
        machine: how generators are opened.
    """
    if machine.option:
        raise UserError("compare takes no --option; convert the file first: eigenlens convert FILE OUT/ --option ...")
    runtime.set_threads(machine.threads)
    changes: dict[str, Any] = {
        "generators": generators,
        "methods": methods,
        "metrics": metrics,
        "seeds": tuple(parse_seeds(seeds)) if seeds else (),
        "code_seeds": tuple(parse_seeds(code_seeds)) if code_seeds else (),
        "calibrations": calibrations,
        "k": k,
        "reader": reader,
        "oracle": oracle,
        "null": null,
    }
    if oracle is not None and not methods and preset is None and config is None:
        changes["methods"] = ("random",)
    comparison = Comparison(load_grid(preset, config, **changes), out, device=machine.device, log=print)
    comparison.run()
    if not comparison.is_complete():
        print(f"{out}: this process's share is done; the one that ends last writes the tables")
        return
    for (group, metric), rows in tables(summarise(comparison)).items():
        print(f"\n{metric} on {group}\n\n{markdown(rows)}", end="")
    print(f"\n{claims_text(claims(summarise(comparison)))}")
    for path in write_tables(comparison):
        print(path)
