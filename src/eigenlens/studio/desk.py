"""The studio's tools: each asks the library, and leaves what it gave as a file of the workspace.

A file is never changed: what is renamed, turned or taught anew is another file, named by its content, so that every
state that the page remembers can be reached again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import images as pictures
from .. import recipe, teach
from ..algebra import compose, similarity
from ..codes import Codes, cross, load_codes, save_codes
from ..codes import concatenate as join_codes
from ..directions import Directions, concatenate
from ..edit import Edit
from ..effect import calibrate
from ..encoder import Encoder, find_encoder
from ..errors import UserError, unknown_name
from ..exchange import import_directions
from ..explorer import export_explorer, make_explorer
from ..files import file_stem, write_json
from ..method import METHODS, lacking, make_method, settings
from ..naming import propose, renamed
from ..photo import open_photo
from ..presets import bundled_presets, load_presets, named_directions
from ..profile import TARGETS, measure_profile, measure_yardstick
from ..project import Progress, project
from ..reader import READERS
from ..sheet import spread
from .bodies import (
    BreedBody,
    ChangeBody,
    ComposeBody,
    DiscoverBody,
    ExplorerBody,
    ExportBody,
    JoinBody,
    MeasureBody,
    NamesBody,
    PresetsBody,
    RegionBody,
    SaveBody,
    SimilarityBody,
    TeachBody,
)
from .jobs import Job
from .shelf import Shelf

MOST_DRAFTS = 2000
"""Drafts of a generator that are kept; the oldest give way."""
FILM_TYPES = {"gif": "image/gif", "webp": "image/webp", "mp4": "video/mp4"}
SUFFIXES = {".safetensors", ".pt", ".npz", ".npy"}
"""Of files of directions that may be uploaded."""


class Desk:
    """Answers what the page's tools ask.

    Args:
        shelf: what may be opened.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._visible: OrderedDict[str, teach.Visible] = OrderedDict()
        self._lock = threading.Lock()

    # sets of directions

    def draft(self, generator: str, directions: Directions, stem: str) -> str:
        """Keep directions as a file named by their content; give its path as requests write it."""
        folder = self.shelf.folder(generator) / "drafts"
        with tempfile.TemporaryDirectory() as place:
            made = directions.save(Path(place) / "made.safetensors")
            digest = hashlib.sha256(made.read_bytes()).hexdigest()[:8]
            path = folder / f"{file_stem(stem.partition('~')[0])}~{digest}.safetensors"
            if not path.exists():
                directions.save(path)
        _tidy(folder)
        return str(path)

    def change(self, body: ChangeBody) -> dict[str, Any]:
        """Rename, turn round and leave out directions."""
        found = self.shelf.directions(body.generator, body.source)
        for name in (*body.rename, *body.flip, *body.drop):
            found.index(name)
        kept = [name for name in found.names if name not in body.drop]
        if not kept:
            raise UserError("a set without directions would be left; take the set off the page instead")
        changed = found.flipped(body.flip)[kept].renamed({a: b for a, b in body.rename.items() if a not in body.drop})
        return {"source": self.draft(body.generator, changed, self._stem(body.source))}

    def _stem(self, source: str) -> str:
        return source if source in METHODS else Path(source).stem

    def presets(self, body: PresetsBody) -> dict[str, Any]:
        """Make published edits into named directions of a set of components."""
        if body.presets not in bundled_presets():
            raise unknown_name("file of presets", body.presets, bundled_presets())
        found = self.shelf.directions(body.generator, body.source)
        named = named_directions(load_presets(body.presets), found, self.shelf.generator(body.generator))
        return {"source": self.draft(body.generator, named, body.presets)}

    def join(self, body: JoinBody) -> dict[str, Any]:
        """Join sets, or parts of them, into one."""
        space = self.shelf.generator(body.generator).space
        pieces = []
        for piece in body.pieces:
            found = self.shelf.directions(body.generator, piece.source)
            found = found if piece.names is None else found[piece.names]
            pieces.append(found.in_sigma(space(found.space)).with_figures(fields={}))
        return {"source": self.draft(body.generator, concatenate(pieces), "joined")}

    def compose(self, body: ComposeBody) -> dict[str, Any]:
        """Make one direction of an Edit's moves; `by` is how far along it the Edit is."""
        edit = self.shelf.edit(body.edit)
        moved = [move for move in edit.moves if move.by]
        if len(moved) < 2 or len(moved) < len(edit.moves):
            raise UserError("two or more sliders moved by a distance make one; moves to a coordinate do not")
        g = self.shelf.generator(edit.generator)
        pieces = []
        for number, move in enumerate(moved):
            one = self.shelf.directions(edit.generator, move.directions)[[move.name]]
            one = one.in_sigma(g.space(one.space)).renamed([f"{number}"])
            layers = (move.layers or one.layers[0],)
            pieces.append(dataclasses.replace(one, layers=layers, fields={}))
        joined = concatenate(pieces)
        wider = [space for space in g.spaces.values() if space.broadcast_of == joined.space]
        space = wider[0] if wider and any(each != "all" for each in joined.layers) else g.space(joined.space)
        made = compose(joined, [float(move.by or 0) for move in moved], body.name, space=space)
        strength = float(made.fields["recipe"][0])
        return {"source": self.draft(edit.generator, made.in_sigma(space), body.name), "by": round(strength, 4)}

    def save(self, body: SaveBody) -> dict[str, Any]:
        """Save a set under a name."""
        found = self.shelf.directions(body.generator, body.source)
        path = self.shelf.folder(body.generator) / f"{file_stem(body.name)}.safetensors"
        return {"source": str(found.save(path, force=body.force))}

    def upload(self, generator: str, name: str, data: bytes) -> dict[str, Any]:
        """Take in a file of directions, ours or another tool's."""
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise UserError(f"{name[:80]!r} is no file of directions; they are {', '.join(sorted(SUFFIXES))}")
        g = self.shelf.generator(generator)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{file_stem(Path(name).stem)}{suffix}"
            path.write_bytes(data)
            is_ours = suffix == ".safetensors"
            found = Directions.load(path, generator=g) if is_ours else import_directions(path, g)
        found.check_space(g.space(found.space))
        return {"source": self.draft(generator, found, Path(name).stem)}

    def file(self, source: str) -> Path:
        """Return the path of a file of the workspace, to be downloaded."""
        path = self.shelf.path(source)
        if not path.is_file() or path.suffix not in (".safetensors", ".json", ".html"):
            raise UserError(f"{source[:200]!r} is no file of the workspace")
        return path

    def files(self, generator: str) -> dict[str, Any]:
        """List the sets that are saved for a generator, and the codes that Breed and Photo left."""
        folder = self.shelf.folder(generator)
        return {
            "directions": [str(path) for path in sorted(folder.glob("*.safetensors"))],
            "codes": [str(path) for path in sorted((folder / "codes").glob("*.safetensors"))],
        }

    def count(self, generator: str, source: str) -> dict[str, Any]:
        """Tell how many codes a file holds."""
        return {"n": len(load_codes(self.shelf.path(source), self.shelf.generator(generator)))}

    # teach

    def teach(self, body: TeachBody) -> dict[str, Any]:
        """Learn a direction from votes, and say which picture to ask about next."""
        edit = self.shelf.edit(body.edit)
        preview = self.shelf.preview(edit.generator)
        with self._lock:
            visible = self._visible.get(edit.generator)
            if visible is None:
                visible = self._visible[edit.generator] = teach.Visible.measure(preview.generator)
                while len(self._visible) > 4:
                    self._visible.popitem(last=False)
        votes = [*([1.0] * len(body.more)), *([-1.0] * len(body.less))]
        if not votes:
            return {"ask": None, "source": None}
        at = lambda seed: preview.starts(dataclasses.replace(edit.codes, seed=seed, index=0, file=None))  # noqa: E731
        judged = join_codes([at(seed) for seed in (*body.more, *body.less)])
        asked = join_codes([at(seed) for seed in body.candidates]) if body.candidates else None
        lesson = teach.learn(visible, judged, votes, candidates=asked)
        done = {*body.more, *body.less}
        place = lesson.most_telling([k for k, seed in enumerate(body.candidates) if seed in done])
        answer: dict[str, Any] = {"ask": None if place is None else body.candidates[place], "source": None}
        if body.more and body.less:
            about = {"more": body.more, "less": body.less, "codes": dataclasses.asdict(edit.codes)}
            made = teach.as_directions(visible, lesson, name=body.name, about=about)
            right = None if lesson.left_out != lesson.left_out else lesson.left_out
            answer |= {"source": self.draft(edit.generator, made, body.name), "left_out": right}
        return answer

    # discover

    def methods(self, generator: str) -> list[dict[str, Any]]:
        """List the methods, with their settings, and why one cannot run on this generator."""
        g = self.shelf.generator(generator)
        listed = []
        for name in METHODS:
            kind = METHODS[name]
            fields = [dataclasses.asdict(each) for each in settings(kind) if each.kind != "other"]
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            listed.append({"name": name, "summary": summary, "settings": fields, "reason": lacking(kind, g)})
        return listed

    def discovering(self, body: DiscoverBody) -> Callable[[Job], dict[str, Any]]:
        """Return the work that runs a method."""
        method = make_method(body.method, body.settings)
        g = self.shelf.generator(body.generator)
        reason = lacking(type(method), g)
        if reason:
            raise UserError(reason)

        def work(job: Job) -> dict[str, Any]:
            found = method.fit(g, seed=body.seed)
            if body.measure != "none":
                found = calibrate(g, found, limits=body.measure == "all")
            return {"source": self.draft(body.generator, found, body.method)}

        return work

    def measuring(self, body: MeasureBody) -> Callable[[Job], dict[str, Any]]:
        """Return the work that measures effects and limits."""
        found = self.shelf.directions(body.generator, body.source)
        g = self.shelf.generator(body.generator)
        stem = self._stem(body.source)
        return lambda job: {"source": self.draft(body.generator, calibrate(g, found), stem), "of": body.source}

    def naming(self, body: NamesBody) -> Callable[[Job], dict[str, Any]]:
        """Return the work that proposes names; those that someone gave stay."""
        found = self.shelf.directions(body.generator, body.source)
        g, reader, stem = self.shelf.generator(body.generator), READERS[body.reader](), self._stem(body.source)

        def work(job: Job) -> dict[str, Any]:
            measured = calibrate(g, found.in_sigma(g.space(found.space)))
            profile = measure_profile(g, measured, reader, measure_yardstick(g, measured, reader), n_codes=16)
            proposals = propose(measured, profile, profile.strengths_at("change", TARGETS["change"]))
            rename = {each.direction: each.name for each in proposals if each.name != each.direction}
            return {"source": self.draft(body.generator, renamed(measured, proposals), stem), "rename": rename}

        return work

    def exploring(self, body: ExplorerBody) -> Callable[[Job], dict[str, Any]]:
        """Return the work that writes a page which runs the generator in a browser."""
        edit = self.shelf.edit(body.edit)
        found, g = self.shelf.directions(edit.generator, body.source), self.shelf.generator(edit.generator)
        start = edit.codes

        def work(job: Job) -> dict[str, Any]:
            place = find_encoder(g)
            page = make_explorer(
                g, found, source=body.source, address=edit.generator, seed=start.seed, truncation=start.truncation,
                label=start.label, encoder=Encoder.load(place, g) if place else None,
            )  # fmt: skip
            path = self.shelf.folder(edit.generator) / f"{self._stem(body.source).partition('~')[0]}.html"
            return {"file": str(export_explorer(page, path, force=True))}

        return work

    def lacking(self) -> dict[str, str]:
        """Say which exports need an extra that is not installed."""
        needed = {"mp4": ("av", "video"), "explorer": ("onnxscript", "onnx")}
        return {
            kind: f"needs the extra {extra!r}: pip install 'eigenlens[{extra}]'"
            for kind, (package, extra) in needed.items()
            if importlib.util.find_spec(package) is None
        }

    def seeking(self, body: RegionBody) -> Callable[[Job], dict[str, Any]]:
        """Return the work that finds directions of a box on a picture, at the code of that picture alone."""
        edit = self.shelf.edit(body.edit)
        x0, y0, x1, y1 = body.box
        if not (x0 < x1 and y0 < y1):
            raise UserError(f"the box {body.box} is empty; its left is less than its right, its top than its bottom")
        preview = self.shelf.preview(edit.generator)
        g, codes = preview.generator, preview.codes(dataclasses.replace(edit, region=None))
        method = METHODS["jacobian"](n_directions=body.n_directions, region=body.box, layers=body.layers)

        def work(job: Job) -> dict[str, Any]:
            found = calibrate(g, method.fit(g, codes=codes), limits=False)
            made = dataclasses.replace(
                found.provenance, arguments={**found.provenance.arguments, "edit": edit.to_json()}
            )
            found = dataclasses.replace(found, provenance=made)
            names = [f"box-{k}" for k in range(len(found))]
            return {"source": self.draft(edit.generator, found.renamed(names), "box")}

        return work

    def similarity(self, body: SimilarityBody) -> dict[str, Any]:
        """Compare two sets."""
        one, other = (self.shelf.directions(body.generator, each) for each in (body.a, body.b))
        alike = similarity(one, other)
        return {
            "a": list(one.names),
            "b": list(other.names),
            "cosines": [[round(value, 4) for value in row] for row in alike.cosines.tolist()],
            "pairs": [list(pair) for pair in alike.pairs],
            "mean": alike.mean,
            "null": alike.null,
            "null_95": alike.null_95,
        }

    # breed

    def breed(self, body: BreedBody) -> dict[str, Any]:
        """Cross two pictures; the children are codes in a file, with a note of their parents beside it."""
        a, b = self.shelf.edit(body.a), self.shelf.edit(body.b)
        if a.generator != b.generator:
            raise UserError(f"parents of {a.generator} and {b.generator} came; both are of one generator")
        preview = self.shelf.preview(a.generator)
        g = preview.generator
        parents = [_bare(preview.codes(dataclasses.replace(each, region=None))) for each in (a, b)]
        order = list(g.spaces)
        space = max((each.space.name for each in parents), key=order.index)
        first, second = (g.lift(each, space) for each in parents)
        label = 0 if g.label_names else None
        fresh = g.sample(body.n, seed=body.seed, space=space, truncation=a.codes.truncation, label=label)
        children = cross(first, second, _bare(fresh), seed=body.seed, mutation=body.mutation)
        about = {"parents": [a.to_json(), b.to_json()], "seed": body.seed, "mutation": body.mutation}
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
        path = self.shelf.folder(a.generator) / "codes" / f"children~{digest}.safetensors"
        save_codes(children, path, g, force=True)
        write_json(path.with_suffix(".json"), about, force=True)
        return {"file": str(path), "n": body.n}

    # photo

    def projecting(self, generator: str, name: str, data: bytes, steps: int) -> Callable[[Job], dict[str, Any]]:
        """Return the work that finds the code of a photo; stopping it keeps the best so far."""
        g = self.shelf.generator(generator)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "photo"
            path.write_bytes(data)
            try:
                photo = open_photo(path, g.resolution)
            except UserError as error:
                raise UserError(str(error).replace(str(path), file_stem(name) or "the photo")) from None
        goals = photo.pixels(g.channels)[None]
        label = 0 if g.label_names else None

        def work(job: Job) -> dict[str, Any]:
            def show(progress: Progress) -> None:
                if job.wish.is_set():
                    raise KeyboardInterrupt  # `project` keeps the best so far
                if progress.step % 4 == 0 or progress.step == progress.n_steps:
                    job.report("project", progress.step, progress.n_steps)
                    job.show(pictures.encode([goals, progress.images], largest=256))

            job.stops_itself = True
            found = project(g, goals, steps=steps, label=label, callback=show)
            latent = found.codes.latent.detach().cpu().contiguous().numpy().tobytes()
            digest = hashlib.sha256(data + g.weight_hash.encode() + latent).hexdigest()[:8]
            stem = f"{file_stem(Path(name).stem, default='photo')}~{digest}"
            path = self.shelf.folder(generator) / "codes" / f"{stem}.safetensors"
            about = {"photo": name[:200], "figures": found.table()[0], "notes": [*photo.notes, *found.notes[0]]}
            save_codes(found.codes, path, g, force=True)
            return {"file": str(path), "is_stopped": found.is_stopped, **about}

        return work

    # readers

    def readers(self) -> list[dict[str, Any]]:
        """List the readers whose attributes can be held, and why one cannot be used."""
        listed = []
        for name in READERS:
            try:
                listed.append({"name": name, "attributes": list(READERS[name]().attributes), "reason": ""})
            except UserError as error:
                listed.append({"name": name, "attributes": [], "reason": str(error)})
        return listed

    # files to take along

    def export(self, body: ExportBody) -> tuple[str, bytes]:
        """Return the type and the bytes of a file made of an Edit; pictures know how they were made."""
        edit = self.shelf.edit(body.edit)
        preview = self.shelf.preview(edit.generator)
        about = self._recipe(edit, body)
        with tempfile.TemporaryDirectory() as folder:
            if body.kind in ("png", "strip"):
                path = Path(folder) / "edit.png"
                picture = pictures.to_pil(preview.images(edit)[0]) if body.kind == "png" else self._strip(edit, body)
                return "image/png", pictures.save(picture, path, recipe=about).read_bytes()
            frames, _ = self._way(edit, body)
            path = Path(folder) / f"edit.{body.kind}"
            pictures.save_animation(list(frames), path, fps=body.fps, pingpong=True, recipe=about)
            return FILM_TYPES[body.kind], path.read_bytes()

    def _recipe(self, edit: Edit, body: ExportBody) -> dict[str, Any]:
        """Return what the file remembers: what it shows, and the command that makes it, where there is one."""
        about: dict[str, Any] = {"version": 1, "edit": edit.to_json()}
        if body.kind == "png":
            return about | {"command": recipe.shell(edit)}
        about |= {"kind": body.kind, "directions": body.directions, "name": body.name, "n": body.n}
        command = self._command(edit, body)
        return about if command is None else about | {"command": command}

    def _command(self, edit: Edit, body: ExportBody) -> str | None:
        """Return the command that makes a strip or film along a direction; None where there is none."""
        if body.directions is None or body.name is None:
            return None
        preview, found = self.shelf.preview(edit.generator), self.shelf.directions(edit.generator, body.directions)
        is_drawn_there = edit.codes.file is not None or found.space == preview.generator.default_space
        if preview.without(edit, body.directions, body.name).moves or not is_drawn_there:
            return None
        out, fps = ("strip.png", None) if body.kind == "strip" else (f"film.{body.kind}", body.fps)
        return recipe.along(
            edit.codes, edit.generator, body.directions, found.names[found.index(body.name)], found.span(body.name),
            n=max(3, body.n | 1), out=out, fps=fps,
        )  # fmt: skip

    def _way(self, edit: Edit, body: ExportBody) -> tuple[Any, list[str]]:
        """Return the images of a strip or film, and their labels."""
        preview = self.shelf.preview(edit.generator)
        if body.directions is None or body.name is None:
            labels = [f"{k / (body.n - 1):.0%}" for k in range(body.n)]
            return preview.morph(edit, body.n), labels
        found = self.shelf.directions(edit.generator, body.directions)
        steps = spread(found, body.name, max(3, body.n | 1))
        images = preview.strip(edit, body.directions, body.name, steps, None)
        return images, [f"{step:+.2g}" if step else "0" for step in steps]

    def _strip(self, edit: Edit, body: ExportBody) -> Any:
        images, labels = self._way(edit, body)
        title = f"{edit.generator}  {body.name}" if body.name else edit.generator
        return pictures.grid(images, columns=len(images), column_labels=labels, title=title)


def _bare(codes: Codes) -> Codes:
    """Return codes without their noise seeds, so that those of any two pictures meet."""
    return dataclasses.replace(codes, noise_seeds=None)


def _tidy(folder: Path) -> None:
    """Let the oldest drafts go where there are too many."""
    drafts = sorted(folder.glob("*~*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in drafts[: max(0, len(drafts) - MOST_DRAFTS)]:
        path.unlink(missing_ok=True)
