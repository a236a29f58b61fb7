"""A study with people: one blinded page of strips with hidden random directions, and what its votes say.

A rater sees strips one by one and says, from 1 to 5, whether exactly one thing changes. Nobody who opens the page can
tell which method made a strip: the key lies in another file. All strips change images equally, so strength tells
nothing; random directions hide among them, so that a rater who likes everything is found out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from . import images as pictures
from . import runtime
from .directions import Directions
from .effect import equal_change, sample_for, traverse
from .errors import UserError
from .generator import Generator
from .inference import Interval, crossed_bootstrap, krippendorff_alpha
from .page import asset, data, escape, page

KEY_FORMAT = "eigenlens.study-key/1"
VOTES_FORMAT = "eigenlens.votes/1"
CONTROL = "control"
"""Name of the hidden random directions among the methods."""
SCALE = (1, 2, 3, 4, 5)
STEPS = 5
STRIP_PIXELS = 96
"""Most pixels of a picture of a strip across."""
QUESTION = "From left to right, does exactly one thing change?"


@dataclass(frozen=True)
class Item:
    """One strip of a study."""

    name: str
    """What the page calls it, which tells nothing."""
    method: str
    """Whose direction it is."""
    direction: str
    """The direction's name."""
    strength: float
    """How far it goes each way, in σ."""


@dataclass(frozen=True)
class Study:
    """A page for raters, and the key that stays behind."""

    page: str
    """HTML that needs no other file."""
    key: dict[str, Any]
    """What every item is, plain JSON."""


def make_study(
    generator: Generator,
    sets: Mapping[str, Directions],
    controls: Directions,
    *,
    change: float = 0.3,
    n_codes: int = 2,
    seed: int = 0,
) -> Study:
    """Draw the strips of all directions and of the controls, in an order that tells nothing.

    Args:
        generator: the generator.
        sets: directions by method, in σ, with limits.
        controls: random directions.
        change: how much a strip changes each way, as a share of the mean distance between two samples; a direction that
            does not get there within its limits goes to the nearer one.
        n_codes: faces a strip shows, one above the other.
        seed: of the faces and the order.

    Raises:
        UserError: where a method is called as the controls are, or there is nothing to rate.
    """
    if CONTROL in sets:
        raise UserError(f"a set of directions is called {CONTROL!r}, which the hidden random ones are; rename it")
    if not sets or n_codes < 1:
        raise UserError("a study needs directions to rate, and at least one face a strip")
    strips: list[tuple[str, str, float, str]] = []
    for method, directions in (*sets.items(), (CONTROL, controls)):
        strengths = equal_change(generator, directions, change).strength.tolist()
        codes = sample_for(generator, directions, n_codes, seed=seed)
        for k, strength in enumerate(strengths):
            strip = _strip(traverse(generator, codes, directions, k, _steps(strength)))
            strips.append((method, directions.names[k], strength, strip))
    told = json.dumps([generator.identity(), [each[:3] for each in strips], seed], default=str)
    study = hashlib.sha256(told.encode()).hexdigest()[:12]
    order = runtime.generator_for(seed, f"study/{study}").permutation(len(strips))
    items = [Item(f"strip-{place + 1:03d}", *strips[i][:3]) for place, i in enumerate(order)]
    shown = {item.name: strips[i][3] for item, i in zip(items, order, strict=True)}
    key = {
        "format": KEY_FORMAT,
        "study": study,
        "generator": generator.identity(),
        "change": change,
        "seed": seed,
        "items": {item.name: {k: v for k, v in vars(item).items() if k != "name"} for item in items},
    }
    return Study(_page(study, shown), key)


def _steps(strength: float) -> list[float]:
    return torch.linspace(-strength, strength, STEPS).tolist()


def _strip(images: torch.Tensor) -> str:
    """Return images [codes, steps, c, h, w] as one picture, a row a code."""
    if images.shape[-1] > STRIP_PIXELS:
        n, steps = images.shape[:2]
        small = F.interpolate(images.flatten(0, 1), size=(STRIP_PIXELS, STRIP_PIXELS), mode="area")
        images = small.unflatten(0, (n, steps))
    rows = [torch.cat(list(row.expand(-1, 3, -1, -1)), dim=2) for row in images]
    return pictures.data_url(pictures.to_pil(torch.cat(rows, dim=1)), "webp")


def _page(study: str, strips: Mapping[str, str]) -> str:
    buttons = "".join(f'<button data-score="{score}">{score}</button>' for score in SCALE)
    body = f"""<main id="start"><h1>What changes?</h1>
<p>You will see {len(strips)} strips of pictures, one at a time. In each, something changes from left to right.
Say from 1 to 5 whether <b>exactly one thing</b> changes: 1 is nothing, or many things at once; 5 is one clear thing.
If you can name it, do. Some strips are hidden checks.</p>
<p>Your votes stay in this browser until you download them at the end. Keys 1 to 5 work too.</p>
<form id="begin"><label>Your name or initials <input id="rater" required maxlength="80" autocomplete="off"></label>
<button class="main">begin</button></form></main>
<main id="trial" hidden><progress id="done" max="{len(strips)}" value="0"></progress>
<img id="strip" alt="a strip of pictures">
<h2>{escape(QUESTION)}</h2><div class="scale"><span>no</span>{buttons}<span>yes</span></div>
<label>What is it? <input id="text" maxlength="120" autocomplete="off" placeholder="may stay empty"></label>
<nav><button id="back">back</button><button id="next" class="main" disabled>next</button></nav></main>
<main id="end" hidden><h1>Thank you</h1><p>Please download your votes and send the file to whoever asked you.</p>
<button id="save" class="main">download the votes</button> <button id="again">look through them again</button></main>
{data("study", {"study": study, "format": VOTES_FORMAT, "strips": strips})}"""
    return page("What changes?", body, script=asset("study.js"), style=asset("study.css"))


# --- votes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyScore:
    """What the votes of a study say."""

    methods: Mapping[str, Interval]
    """Mean opinion of each method, controls among them, with an interval over raters and strips."""
    above_control: Mapping[str, Interval]
    """Mean opinion less that of the controls, paired by rater."""
    directions: Mapping[tuple[str, str], tuple[float, int]]
    """(method, direction) -> mean opinion and count of votes."""
    texts: Mapping[tuple[str, str], tuple[str, ...]]
    """(method, direction) -> what raters called it."""
    alpha: float
    """Krippendorff's α of all ratings, ordinal; NaN with one rater."""
    raters: Mapping[str, float]
    """Rater -> mean opinion of the others less that of the controls; near or below 0 for one who does not look."""
    n_votes: int
    """How many votes there are."""


def read_key(path: Path) -> dict[str, Any]:
    """Read the key of a study.

    Raises:
        UserError: where the file is none.
    """
    key = _json(path)
    if key.get("format") != KEY_FORMAT or not isinstance(key.get("items"), dict):
        raise UserError(f"{path} is no key of a study; eigenlens study writes it beside the page")
    return key


def read_votes(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Read one rater's votes, and check them against the key.

    Raises:
        UserError: where the file holds none, they are of another study, or one is impossible.
    """
    votes = _json(path)
    if votes.get("format") != VOTES_FORMAT or not isinstance(votes.get("votes"), list):
        raise UserError(f"{path} holds no votes; download them from the last screen of the page")
    if votes.get("study") != key["study"]:
        raise UserError(f"{path} holds votes of study {votes.get('study')}, and the key is of {key['study']}")
    if not isinstance(votes.get("rater"), str):
        raise UserError(f"{path} does not tell whose votes they are")
    for vote in votes["votes"]:
        if not isinstance(vote, dict) or vote.get("item") not in key["items"] or vote.get("score") not in SCALE:
            raise UserError(f"{path} holds {json.dumps(vote)[:80]}, which is no vote on a strip of this study")
    return votes


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; an object is needed")
    return value


def score_study(votes: Sequence[Mapping[str, Any]], key: Mapping[str, Any], *, seed: int = 0) -> StudyScore:
    """Compute opinions and agreement from votes; a rater who voted twice on a strip is taken at the last word.

    Args:
        votes: one a rater, as `read_votes` gives them.
        key: of the study.
        seed: of the bootstrap.

    Raises:
        UserError: where there are no votes, or a rater comes twice.
    """
    names, raters = list(key["items"]), [each["rater"] for each in votes]
    if len(set(raters)) < len(raters):
        raise UserError(f"a rater came twice: {', '.join(raters)}; give each file once, with a name of its own")
    ratings = np.full((len(votes), len(names)), math.nan)
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    for row, each in enumerate(votes):
        for vote in each["votes"]:
            ratings[row, names.index(vote["item"])] = vote["score"]
            item, text = key["items"][vote["item"]], str(vote.get("text") or "").strip()
            if text:
                place = (item["method"], item["direction"])
                texts[place] = (*texts.get(place, ()), text)
    if not np.isfinite(ratings).any():
        raise UserError("no vote came; there is nothing to score")
    owners = np.array([key["items"][name]["method"] for name in names])
    columns = {method: ratings[:, owners == method] for method in dict.fromkeys(owners.tolist())}
    methods = {m: crossed_bootstrap(own, seed=seed) for m, own in columns.items() if np.isfinite(own).any()}
    means = {method: _row_means(own) for method, own in columns.items()}
    control = means.get(CONTROL, np.full(len(votes), math.nan))
    others = _row_means(ratings[:, owners != CONTROL])
    above = {m: mean - control for m, mean in means.items() if m != CONTROL and np.isfinite(mean - control).any()}
    opinions = {}
    for i, name in enumerate(names):
        given = ratings[np.isfinite(ratings[:, i]), i]
        if len(given):
            item = key["items"][name]
            opinions[item["method"], item["direction"]] = (float(given.mean()), len(given))
    return StudyScore(
        methods,
        {method: crossed_bootstrap(difference, seed=seed) for method, difference in above.items()},
        opinions,
        texts,
        krippendorff_alpha(ratings) if len(votes) > 1 else math.nan,
        dict(zip(raters, (others - control).tolist(), strict=True)),
        int(np.isfinite(ratings).sum()),
    )


def _row_means(rows: np.ndarray) -> np.ndarray:
    """Return the mean of what is known in each row; NaN where nothing is."""
    counts = np.isfinite(rows).sum(1)
    return np.where(counts > 0, np.nansum(rows, axis=1) / np.maximum(counts, 1), math.nan)
