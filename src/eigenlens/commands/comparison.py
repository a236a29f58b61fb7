"""`compare`, `names` and `study`: which directions are good, what they are, and what people say."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, UseAppendAction

from .. import runtime
from ..compare import NULL_SEED, Comparison, most_important, plain_json
from ..directions import concatenate
from ..effect import calibrate
from ..errors import UserError
from ..files import refuse_existing, write_json, write_text
from ..grid import load_grid
from ..inference import Interval
from ..method import METHODS, find_directions
from ..naming import propose, purities, renamed, text_reader
from ..profile import TARGETS, measure_profile, measure_yardstick
from ..reader import open_reader
from ..report import write_report
from ..study import make_study, read_key, read_votes, score_study
from ..verdict import claims, claims_text, markdown, shown, summarise, tables, write_tables
from .discovery import renamings
from .words import HERE, Machine, as_table, default_directions, parse_seeds


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
    processes: int | None = None,
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
        calibrations: any of native, change, attribute, realism, which are the default, kid_pixels, kid_efficientnet.
        k: directions of each method.
        reader: reads attributes.
        oracle: a generator whose coordinates are the true factors.
        null: random directions behind each p-value.
        processes: how many share the work, and the threads; each holds a network. By default one a core, at most 4, and
            one on a GPU.
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
    tell = functools.partial(print, flush=True)
    comparison = Comparison(load_grid(preset, config, **changes), out, device=machine.device, log=tell)
    comparison.run(processes)
    if runtime.rank():
        return  # the first one writes the tables
    for (group, metric), rows in tables(summarise(comparison)).items():
        print(f"\n{metric} on {group}\n\n{markdown(rows)}", end="")
    print(f"\n{claims_text(claims(summarise(comparison)))}")
    failed = sum(each.status == "failed" for each in summarise(comparison))
    if failed:
        print(f"{failed} entries failed; {out / 'results.jsonl'} tells why, and the same command tries them again\n")
    for path in (*write_tables(comparison), write_report(comparison)):
        print(path)


def names(
    sources: Positional[tuple[str, ...]],
    /,
    *,
    generator: str,
    out: Path | None = None,
    reader: str = "pixels",
    texts: tuple[str, ...] = (),
    rename: UseAppendAction[tuple[str, ...]] = (),
    change: float = TARGETS["change"],
    null: int = 39,
    n_codes: int = 32,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Propose names for directions from the attributes that they change; what nothing explains keeps its number.

    Args:
        sources: files of directions, or names of methods.
        generator: the generator that they belong to.
        out: a .safetensors file for the named directions.
        reader: reads attributes: its own names are those that directions get.
        texts: name by these texts instead, with CLIP weights of your own (EIGENLENS_CLIP names the file).
        rename: OLD=NEW; your names win, here and where a file has them already. Repeat it for more.
        change: of images at which attributes are compared, as a share of the mean distance between two samples.
        null: random directions that p-values are counted against; 0 leaves them out.
        n_codes: codes that are walked.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace a file that exists.
    """
    if out is not None:
        refuse_existing(out, force=force)
    g, judge = machine.open(generator), text_reader(texts) if texts else open_reader(reader)
    found = concatenate([find_directions(source, g, foreign=foreign) for source in sources])
    found = found.renamed(renamings(found, rename))
    found = calibrate(g, found.in_sigma(g.space(found.space)))
    yardstick = measure_yardstick(g, found, judge)
    profile = measure_profile(g, found, judge, yardstick, n_codes=n_codes)
    chance: list[float] = []
    if null:
        count = min(null, g.space(found.space).dim)
        drawn = METHODS["random"](n_directions=count, law="covariance", space=found.space).fit(g, seed=NULL_SEED)
        random = measure_profile(g, calibrate(g, drawn), judge, yardstick, n_codes=n_codes)
        chance = purities(random, random.strengths_at("change", change))
    proposals = propose(found, profile, profile.strengths_at("change", change), null=chance)
    rows = [
        {"direction": each.direction, "name": each.name, "p": shown(each.p), "evidence": each.evidence}
        for each in proposals
    ]
    print(as_table(rows))
    if out is not None:
        print(renamed(found, proposals).save(out, force=force))


def study(
    generator: Positional[str],
    /,
    *,
    directions: tuple[str, ...] = (),
    out: Path = Path("study"),
    controls: int = 6,
    k: int = 10,
    change: float = 0.3,
    n_codes: int = 2,
    seed: int = 0,
    foreign: bool = False,
    machine: Machine = HERE,
    force: bool = False,
) -> None:
    """Write a page on which people judge strips without knowing whose they are; `study score` counts their votes.

    Args:
        generator: a name, a folder, a file, or package.module:function.
        directions: files of directions or names of methods, one set each, called as the file is; by default the
            generator's own.
        out: the folder for page.html, which raters get, and key.json, which they do not.
        controls: random directions that hide among the others.
        k: directions of each set.
        change: of images, from the middle of a strip to its end, as a share of the mean distance of two samples.
        n_codes: faces a strip shows.
        seed: of the faces and the order.
        foreign: take directions made for another generator.
        machine: how the generator is opened.
        force: replace files that exist.
    """
    for name in ("page.html", "key.json"):
        refuse_existing(out / name, force=force)
    named = _set_names(directions)
    g = machine.open(generator)
    sets = {}
    for name, source in (named or _set_names([default_directions(g)])).items():
        found = most_important(find_directions(source, g, foreign=foreign), k)
        sets[name] = calibrate(g, found.in_sigma(g.space(found.space)))
    space = next(iter(sets.values())).space
    drawn = METHODS["random"](n_directions=controls, law="covariance", space=space).fit(g, seed=NULL_SEED + seed)
    made = make_study(g, sets, calibrate(g, drawn), change=change, n_codes=n_codes, seed=seed)
    print(write_text(out / "page.html", made.page, force=force))
    print(write_json(out / "key.json", made.key, force=force))


def _set_names(sources: Sequence[str]) -> dict[str, str]:
    """Return sources of directions by the name of their set: a file's own, without its ending, or the method's.

    Raises:
        UserError: where two sets would have one name.
    """
    named: dict[str, str] = {}
    for source in sources:
        name = Path(source).stem if Path(source).suffix else source
        if name in named:
            raise UserError(
                f"{named[name]} and {source} came, and both sets would be called {name!r}; "
                "give each file a name of its own"
            )
        named[name] = source
    return named


def study_score(
    verb: Positional[Literal["score"]],
    votes: Positional[tuple[Path, ...]],
    /,
    *,
    key: Path = Path("study/key.json"),
    out: Path | None = None,
    force: bool = False,
) -> None:
    """Count the votes of a study: mean opinion of each method, beside the hidden random directions, and agreement.

    Args:
        verb: score.
        votes: the files that raters downloaded.
        key: the key of the study.
        out: a .json file for all figures.
        force: replace a file that exists.
    """
    if out is not None:
        refuse_existing(out, force=force)
    known = read_key(key)
    score = score_study([read_votes(path, known) for path in votes], known)
    rows = []
    for method, opinion in score.methods.items():
        above = score.above_control.get(method)
        rows.append(
            {
                "method": method,
                "mean opinion": _with_interval(opinion),
                "above the controls": _with_interval(above) if above else "-",
            }
        )
    print(as_table(rows))
    told = [
        {"direction": f"{method}:{name}", "mean": shown(mean, 2), "votes": count,
         "called": "; ".join(score.texts.get((method, name), ())) or "-"}
        for (method, name), (mean, count) in sorted(score.directions.items(), key=lambda pair: -pair[1][0])
    ]  # fmt: skip
    print(f"\n{as_table(told)}")
    print(f"\n{score.n_votes} votes of {len(score.raters)} raters; Krippendorff's α {shown(score.alpha)} (ordinal)")
    careless = [name for name, difference in score.raters.items() if difference <= 0]
    if careless:
        print(f"rated the hidden random directions no lower than the others: {', '.join(careless)}")
    if out is not None:
        plain = dataclasses.asdict(score)
        plain |= {name: {":".join(at): v for at, v in plain[name].items()} for name in ("directions", "texts")}
        print(write_json(out, plain_json(plain), force=force))


def _with_interval(interval: Interval) -> str:
    text = shown(interval.mean, 2)
    return text if math.isnan(interval.low) else f"{text} [{shown(interval.low, 2)}, {shown(interval.high, 2)}]"


def _with_verb(words: list[str]) -> Any:
    return study_score if words[:1] == ["score"] else study


study.specialise = _with_verb  # type: ignore[attr-defined]
