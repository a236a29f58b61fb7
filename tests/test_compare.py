"""The grid, its results and claims: on a painter whose axes are known, and on hand-made numbers."""

from __future__ import annotations

import json
import math
import multiprocessing
import shlex
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

import painted
from eigenlens import Directions, runtime
from eigenlens.cli import main
from eigenlens.compare import CLAIMS, Comparison, Results, address_key
from eigenlens.errors import UserError
from eigenlens.files import claim
from eigenlens.generator import load_generator
from eigenlens.grid import PRESETS, Entry, Grid, load_grid
from eigenlens.inference import crossed_bootstrap
from eigenlens.method import METHODS
from eigenlens.reader import EXTRACTORS, digest_of
from eigenlens.verdict import Summary, claims, in_words, summarise, tables, write_tables

MATRIX = "attribute_matrix_pixels_v1(reader=painted:Regions)"


@pytest.fixture(autouse=True)
def bad_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.table, "copies", "painted:Copies")
    monkeypatch.setitem(METHODS.table, "broken", "painted:Broken")


def small(**changes) -> Grid:
    plain = {
        "generators": {"painter": ["painted:painter"]},
        "methods": ["axes", "random"],
        "metrics": [MATRIX, "latent_orthogonality_v1"],
        "k": 4,
        "null": 5,
        "reader": "painted:Regions",
        "profile_codes": 8,
    }
    return Grid.from_dict(plain | changes)


def test_cells_know_the_weights_of_their_reader() -> None:
    grid = small(metrics=["attribute_matrix_toonfaces_v1", "latent_orthogonality_v1"], reader="toonfaces")
    told = {}
    for cell in grid.cells(next(iter(grid.fits()))):
        told[cell.metric.name, cell.calibration] = cell.address(grid)
    edition = f"toonfaces@{digest_of('toonfaces')}"
    assert len(edition) == 22
    assert told["attribute_matrix_toonfaces_v1", "native"]["metric_reader"] == edition
    assert told["attribute_matrix_toonfaces_v1", "attribute"]["reader"] == edition
    assert "metric_reader" not in told["latent_orthogonality_v1", "native"]
    assert digest_of("pixels") == ""


def test_a_small_space_gives_as_many_baselines_as_it_has_room_for(tmp_path) -> None:
    generator = load_generator("painted:painter")
    room = generator.space(generator.default_space).dim
    for name in ("axes", "random"):
        assert len(METHODS[name]().fit(generator)) == min(10, room)
        with pytest.raises(UserError, match=f"room for 1-{room}"):
            METHODS[name](n_directions=room + 1).fit(generator)
    comparison = Comparison(small(k=room + 5, metrics=["latent_orthogonality_v1"]), tmp_path)
    comparison.run()
    assert {each["status"] for each in comparison.results.read()} == {"done"}
    assert {each["directions"]["k"] for each in comparison.results.read()} == {room}


def test_axes_go_round_the_parts_of_a_code(tiny) -> None:
    generator = tiny("eigengan")
    space = generator.space("z")
    axes = METHODS["axes"](n_directions=2 * len(space.parts)).fit(generator)
    moved = axes.vectors[:, 0].argmax(1).tolist()
    assert [[part.start <= each < part.stop for part in space.parts].index(True) for each in moved] == [
        *range(len(space.parts)),
        *range(len(space.parts)),
    ]
    assert axes.names == tuple(f"axis-{each}" for each in moved)
    assert sorted(METHODS["axes"](n_directions=space.dim).fit(generator).vectors[:, 0].argmax(1).tolist()) == [
        *range(space.dim)
    ]  # each once
    plain = METHODS["axes"](n_directions=3, space="w").fit(tiny("stylegan2"))
    assert plain.vectors[:, 0].argmax(1).tolist() == [0, 1, 2]
    spread = METHODS["axes"](n_directions=3, space="w+").fit(tiny("stylegan2"))  # the same stretch in every slot
    assert spread.names == plain.names


# --- asking -----------------------------------------------------------------------------------------------------------


def test_entries_read_arguments_of_every_kind() -> None:
    entry = Entry.parse('ganspace( at=layer3, n_samples=1500, x=[1, "a,b"] )')
    assert entry.arguments == {"at": "layer3", "n_samples": 1500, "x": [1, "a,b"]}
    assert Entry.parse(str(entry)) == entry
    for bad in ("", "sefa(", "sefa(5)", "sefa(a=1) b"):
        with pytest.raises(UserError, match="is no name with arguments"):
            Entry.parse(bad)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["sefaa"]}, "Did you mean 'sefa'?"),
        ({"methods": ["sefa(n_direction=3)"]}, "sefa has no argument 'n_direction'; it has"),
        ({"methods": ["axes", "axes"]}, "a method came twice"),
        ({"metrics": ["mig_v9"]}, "unknown metric 'mig_v9'"),
        ({"calibrations": ["sigma"]}, "calibration 'sigma' is not known"),
        ({"reader": "pixel"}, "Did you mean 'pixels'?"),
        ({"seed": [0]}, "a grid has no 'seed'; it has"),
        ({"seeds": ["x"]}, "the grid cannot be read"),
        ({"seeds": []}, "at least one"),
        ({"k": 0}, "whole numbers from 1"),
        ({"profile_codes": 1.5}, "whole numbers from 1"),
        ({"targets": {"change": math.inf}}, "the target of change is inf; give a number above 0"),
        ({"targets": {"native": math.nan}}, "the target of native is nan"),
        ({"at": {"mig": ["native"]}}, "at names 'mig', which is no metric of the grid"),
        ({"at": {"latent_orthogonality_v1": ["sigma"]}}, "calibration 'sigma' is not known"),
    ],
)
def test_mistakes_in_a_grid_are_named(changes, says: str) -> None:
    with pytest.raises(UserError) as error:
        small(**changes)
    assert says in str(error.value)


def test_a_grid_is_plain_data(tmp_path: Path) -> None:
    grid = small(methods=["axes", "random(law=covariance)"], targets={"change": 0.3}, at={MATRIX: ["change"]})
    assert [each.calibration for each in grid.cells(next(grid.fits()))] == ["change", "native"]
    assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert grid.targets["realism"] == 0.5
    file = tmp_path / "grid.yaml"
    file.write_text("generators: {faces: [a, b]}\nmethods: [{name: axes, n_directions: 3}]\nseeds: [1, 2]\n")
    read = load_grid(None, file, seeds=(7,), k=None)
    assert read.generators == {"faces": ("a", "b")}
    assert read.methods == (Entry("axes", {"n_directions": 3}),)
    assert read.seeds == (7,)
    for preset in PRESETS:
        load_grid(preset)
    with pytest.raises(UserError, match="unknown preset 'slow'; known: quick"):
        load_grid("slow")
    file.write_text("- 1")
    with pytest.raises(UserError, match="holds no grid"):
        load_grid(None, file)


def test_networks_whose_folders_are_called_the_same_stay_apart() -> None:
    assert list(small(generators=["runs/1/last", "runs/2/last"]).generators) == ["runs/1/last", "runs/2/last"]
    assert list(small(generators=["runs/1/last", "toonfaces"]).generators) == ["last", "toonfaces"]


def test_another_native_strength_is_another_number() -> None:
    def addresses(**targets: float) -> dict[str, dict]:
        grid = small(calibrations=["native"], targets=targets)
        return {cell.metric.name: cell.address(grid) for cell in grid.cells(next(grid.fits()))}

    plain, nearer = addresses(), addresses(native=1.0)
    assert "target" not in plain["attribute_matrix_pixels_v1"]  # nor has it one in older results
    assert nearer["attribute_matrix_pixels_v1"] == plain["attribute_matrix_pixels_v1"] | {"target": 1.0}
    assert nearer["latent_orthogonality_v1"] == plain["latent_orthogonality_v1"]  # no strength enters it


def test_what_a_method_reads_is_part_of_its_directions() -> None:
    seen = [small(methods=["supervised", "axes"], reader=reader) for reader in ("pixels", "painted:Regions")]
    keys = [[fit.key(grid.reader, k=4) for fit in grid.fits()] for grid in seen]
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] == keys[1][1]  # axes read nothing
    own = small(methods=["supervised(reader=pixels)"], reader="painted:Regions")
    assert next(own.fits()).reads(own.reader) == {}


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS.table, "copies", "painted:Copies")
        generators = {"painter": ["painted:painter"], "shuffled": ["painted:shuffled"]}
        grid = small(generators=generators, methods=["axes", "random", "copies", "eigen"], oracle="painted:painter")
        comparison = Comparison(grid, tmp_path_factory.mktemp("comparison"))
        comparison.run()
    return comparison


def test_every_cell_is_a_line_with_all_that_is_needed_to_get_it_again(done: Comparison) -> None:
    assert done.is_complete()
    lines = done.results.read()
    assert len(lines) == len(done.cells()) == 2 * 5 * (4 + 1)
    axes = [each for each in lines if each["cell"]["method"] == "axes"]  # the oracle comes first
    line = next(each for each in axes if each["status"] == "done" and each["cell"]["metric"] == MATRIX)
    for key in ("value", "protocol", "version", "n", "seed", "seconds", "cpu_seconds", "device", "generator", "dead"):
        assert line[key] is not None
    assert "--generators painted:painter --methods axes --metrics" in line["command"]


def test_what_a_family_lacks_is_not_applicable_with_the_reason(done: Comparison) -> None:
    lines = [each for each in done.results.read() if each["cell"]["method"] == "eigen"]
    assert {each["status"] for each in lines} == {"n/a"}
    assert "no axes of its own" in lines[0]["reason"]


def value(done: Comparison, group: str, method: str, calibration: str, figure: str | None = None) -> float:
    for each in summarise(done):
        if (each.group, each.method, each.metric, each.calibration) == (group, method, MATRIX, calibration):
            assert each.interval is not None
            return each.further[figure] if figure else each.interval.mean
    raise AssertionError(f"no {group} {method} {calibration}")


@pytest.mark.parametrize("calibration", ["native", "change", "attribute", "realism"])
def test_pure_axes_beat_random_ones_and_shuffled_weights(done: Comparison, calibration: str) -> None:
    pure = value(done, "painter", "axes", calibration)
    assert pure > value(done, "painter", "random", calibration) + 0.1
    assert pure > value(done, "shuffled", "axes", calibration) + 0.1
    assert value(done, "painter", "oracle", calibration) == pytest.approx(pure)  # here they are the same axes


def test_copies_are_pure_and_still_come_out_bad(done: Comparison) -> None:
    assert value(done, "painter", "copies", "native", "coverage 4") < value(
        done, "painter", "axes", "native", "coverage 4"
    )
    orthogonality = {each.method: each for each in summarise(done) if each.metric == "latent_orthogonality_v1"}
    assert orthogonality["copies"].interval is not None
    assert orthogonality["copies"].interval.mean == pytest.approx(0.0, abs=1e-6)
    assert orthogonality["copies"].calibration == "any"


@pytest.mark.parametrize(("method", "calibration"), [("random", "change"), ("axes", "realism")])
def test_the_command_of_a_cell_gives_its_number_again(
    done: Comparison, method: str, calibration: str, tmp_path: Path
) -> None:
    wanted = {"group": "painter", "method": method, "calibration": calibration, "metric": MATRIX}
    line = next(each for each in done.results.read() if wanted.items() <= each["cell"].items())
    words = shlex.split(line["command"])
    out = tmp_path / "again"
    assert main([*words[1 : words.index("--out")], "--out", str(out), "--null", "0"]) == 0
    again = [each for each in Results(out).read() if each["cell"]["method"] == method]
    assert [each["value"] for each in again] == [line["value"]]


def test_a_finished_run_computes_nothing_again(done: Comparison) -> None:
    before = done.results.path.read_text("utf-8")
    Comparison(done.grid, done.folder).run()
    assert done.results.path.read_text("utf-8") == before


def test_tables_are_written_and_say_the_same(done: Comparison) -> None:
    found = tables(summarise(done))
    row = {each["method"]: each for each in found["painter", MATRIX]}
    assert row["eigen"]["native"] == "n/a"
    assert float(row["axes"]["native"].split()[0]) == pytest.approx(value(done, "painter", "axes", "native"), abs=6e-4)
    write_tables(done)
    text = (done.folder / "tables" / "all.md").read_text("utf-8")
    assert row["axes"]["native"] in text
    assert "nothing is said" in text
    csv = (done.folder / "tables" / "all.csv").read_text("utf-8").splitlines()
    assert csv[0].startswith("generator,method,metric,calibration,status,mean")
    assert len(csv) == 1 + len(summarise(done))


def test_a_failed_cell_names_its_reason_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small(methods=["broken", "axes"], metrics=["latent_orthogonality_v1"])
    comparison = Comparison(grid, tmp_path)
    comparison.run()
    assert comparison.is_complete()
    first = {each["cell"]["method"]: each for each in comparison.results.read()}
    assert first["broken"]["reason"] == "ZeroDivisionError: nothing to divide by"
    assert first["axes"]["status"] == "done"
    monkeypatch.setitem(METHODS.table, "broken", "painted:Copies")  # somebody mends it
    Comparison(grid, tmp_path).run()
    latest = [each["status"] for each in comparison.results.latest().values()]
    assert latest == ["done", "done"]
    assert len(comparison.results.read()) == 3


def test_other_weights_under_the_same_name_are_no_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small(methods=["axes"], metrics=["latent_orthogonality_v1"])
    Comparison(grid, tmp_path).run()
    monkeypatch.setattr(painted, "painter", painted.shuffled)
    with pytest.raises(UserError, match=r"painted:painter has weights .* choose another folder"):
        Comparison(grid, tmp_path).run()


def test_a_method_without_use_for_a_seed_is_measured_once(tmp_path: Path) -> None:
    grid = small(seeds=[0, 1], calibrations=["native"], metrics=[MATRIX])
    comparison = Comparison(grid, tmp_path)
    comparison.run()
    lines = {(each["cell"]["method"], each["cell"]["method_seed"]): each for each in comparison.results.read()}
    assert lines["axes", 1]["same_as"] == {"method_seed": 0}
    assert lines["axes", 1]["value"] == lines["axes", 0]["value"]
    assert "same_as" not in lines["random", 1]
    assert lines["random", 1]["value"] != lines["random", 0]["value"]
    known = {each.method: each for each in summarise(comparison)}
    assert len(known["axes"].points) == 1
    assert math.isnan(known["axes"].interval.low)  # copies of one number bound nothing
    assert len(known["random"].points) == 2
    assert known["random"].interval.low < known["random"].interval.high


def _alone(fit: Callable[..., Directions]) -> Callable[..., Directions]:
    """Check that a method under torchrun takes its process for the only one: cells are shared out, not their work."""

    def checked(*args, **kwargs) -> Directions:
        assert (runtime.rank(), runtime.world_size()) == (0, 1)
        return fit(*args, **kwargs)

    return checked


def test_methods_under_torchrun_are_not_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small(metrics=["latent_orthogonality_v1"], methods=["axes", "random", "copies"], seeds=[0, 1])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(painted.Copies, "fit", _alone(painted.Copies.fit))
    comparison = Comparison(grid, tmp_path)
    comparison.run()
    assert {each["status"] for each in comparison.results.read()} == {"done"}
    assert comparison.is_complete()


def _hold(folder: Path, work: str, is_held: Event, may_end: Event) -> None:
    with claim(folder / CLAIMS, work) as is_ours:
        assert is_ours
        is_held.set()
        may_end.wait(60)


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    comparison = Comparison(small(metrics=["latent_orthogonality_v1"], null=0), tmp_path)
    fit = next(each for each in comparison.grid.fits() if each.label == "random")
    fork = multiprocessing.get_context("fork")
    is_held, may_end = fork.Event(), fork.Event()
    work = comparison.directions_file(fit).stem
    other = fork.Process(target=_hold, args=(tmp_path, work, is_held, may_end))
    other.start()
    assert is_held.wait(60)
    told: list[str] = []

    def log(line: str) -> None:
        told.append(line)
        if "axes  latent" in line:
            other.kill()  # a claim ends with its process

    comparison.log = log
    comparison.run()
    other.join()
    assert [line.split()[1] for line in told if "directions" in line] == ["axes", "random"]
    assert comparison.is_complete()


def test_metrics_of_what_another_process_found_are_taken(tmp_path: Path) -> None:
    comparison = Comparison(small(methods=["axes"], calibrations=["native"], null=0), tmp_path)
    fit = next(comparison.grid.fits())
    comparison.found(fit)  # by whoever goes on with the first metric
    fork = multiprocessing.get_context("fork")
    is_held, may_end = fork.Event(), fork.Event()
    work = f"{comparison.directions_file(fit).stem} {comparison.grid.metrics[0]}"
    other = fork.Process(target=_hold, args=(tmp_path, work, is_held, may_end))
    other.start()
    assert is_held.wait(60)
    comparison.log = lambda line: may_end.set()
    comparison.run()
    other.join()
    assert [each["cell"]["metric"] for each in comparison.results.read()] == ["latent_orthogonality_v1", MATRIX]


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    grid = small(methods=["axes", "random"], seeds=[0, 1])
    found = []
    for count in (1, 2):
        comparison = Comparison(grid, tmp_path / str(count))
        comparison.run(count)
        assert comparison.is_complete()
        lines = comparison.results.read()
        assert len(lines) == len(comparison.cells())  # none twice
        found.append({address_key(each["cell"]): each["value"] for each in lines})
    assert found[0].keys() == found[1].keys()
    assert list(found[1].values()) == pytest.approx([found[0][key] for key in found[1]], abs=1e-6)
    with pytest.raises(UserError, match="0 processes"):
        Comparison(grid, tmp_path / "1").run(0)


def test_what_failed_is_tried_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Directions:
        raise ValueError("no luck")

    monkeypatch.setattr(painted.Copies, "fit", fails)
    comparison = Comparison(small(metrics=["latent_orthogonality_v1"], methods=["copies"], null=0), tmp_path)
    since = len(comparison.results.read())
    for _ in range(2):  # two processes, one after the other
        comparison._take(since)
    assert len(comparison.results.read()) == 1
    monkeypatch.setattr(painted.Copies, "fit", lambda *_, **__: pytest.fail("it was tried again"))
    comparison._advance(next(comparison.grid.fits()), since)  # as one that saw it empty before the other failed
    monkeypatch.setattr(painted.Copies, "fit", fails)
    comparison.run()
    assert len(comparison.results.read()) == 2


def test_a_spoilt_file_of_directions_fails_in_its_cells_alone(tmp_path: Path) -> None:
    comparison = Comparison(small(metrics=["latent_orthogonality_v1"], null=0), tmp_path)
    fit = next(comparison.grid.fits())
    comparison.found(fit)
    comparison.directions_file(fit).write_bytes(b"no directions")
    comparison.run()
    assert [(each["cell"]["method"], each["status"]) for each in comparison.results.read()] == [
        ("axes", "failed"), ("random", "done"),
    ]  # fmt: skip


def test_a_stopped_write_harms_no_other_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append({"cell": {"a": 1}, "value": 1.0})
    with open(results.path, "a") as file:
        file.write('{"cell": {"a": 2}, "val')
    results.append({"cell": {"a": 3}, "value": math.nan})
    assert [each["cell"]["a"] for each in results.read()] == [1, 3]
    assert results.read()[1]["value"] is None


def test_a_write_stopped_within_a_letter_harms_no_other_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append({"cell": {"a": 1}, "names": ["σ"]})
    with open(results.path, "ab") as file:
        file.write('{"cell": {"a": 2}, "names": ["σ'.encode()[:-1])
    assert [each["cell"]["a"] for each in results.read()] == [1]
    results.append({"cell": {"a": 3}})
    assert [each["cell"]["a"] for each in results.read()] == [1, 3]


def test_a_name_with_a_line_separator_stays_one_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append({"cell": {"method": "mine"}, "names": ["left\u2028right"]})
    assert [each["names"] for each in results.read()] == [["left\u2028right"]]


def _append_many(folder: Path, writer: int) -> None:
    for number in range(50):
        Results(folder).append({"cell": {"writer": writer, "number": number}, "text": "x" * 9000})


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [multiprocessing.get_context("fork").Process(target=_append_many, args=(tmp_path, i)) for i in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    lines = Results(tmp_path).read()
    assert len({(each["cell"]["writer"], each["cell"]["number"]) for each in lines}) == 200
    assert all(len(each["text"]) == 9000 for each in lines)


# --- claims -----------------------------------------------------------------------------------------------------------


def summary(method: str, calibration: str, values: list[float]) -> Summary:
    array = np.array(values)[:, None, None]
    return Summary(
        "faces", method, "purity_v1", calibration, array, crossed_bootstrap(array), 0, 10, math.nan, "done", "", "", {}
    )


def both(first: dict[str, list[float]], second: dict[str, list[float]]):
    summaries = [summary("one", name, values) for name, values in first.items()]
    summaries += [summary("two", name, values) for name, values in second.items()]
    (claim,) = claims(summaries, calibrations=list(first))
    return claim


HIGH = [0.8, 0.9, 0.85, 0.82, 0.88]
LOW = [0.3, 0.5, 0.4, 0.35, 0.45]
ALIKE = [0.44, 0.31, 0.42, 0.5, 0.33]
"""Not the same as `LOW`, nor higher or lower."""


def test_an_order_that_holds_everywhere_is_claimed_whichever_comes_first() -> None:
    claim = both({"native": HIGH, "change": HIGH}, {"native": LOW, "change": LOW})
    assert (claim.verdict, claim.first) == ("higher", "one")
    claim = both({"native": LOW, "change": LOW}, {"native": HIGH, "change": HIGH})
    assert (claim.verdict, claim.first, claim.second) == ("higher", "two", "one")
    assert all(each.low > 0 for each in claim.differences.values())
    assert "two is higher than one (native +0.45" in in_words(claim)


def test_an_order_that_turns_or_fades_depends_on_calibration() -> None:
    assert both({"native": HIGH, "change": LOW}, {"native": LOW, "change": HIGH}).verdict == "depends on calibration"
    faded = both({"native": HIGH, "change": LOW}, {"native": LOW, "change": ALIKE})
    assert faded.verdict == "depends on calibration"
    assert "depends on calibration" in in_words(faded)
    missing = both({"native": HIGH, "change": HIGH}, {"native": LOW})
    assert missing.verdict == "depends on calibration"


def test_no_order_is_claimed_from_noise_or_few_seeds() -> None:
    assert both({"native": LOW}, {"native": ALIKE}).verdict == "not shown"
    assert both({"native": HIGH[:4]}, {"native": LOW[:4]}).verdict == "too few seeds"


def test_an_order_at_fewer_than_four_strengths_is_no_claim() -> None:
    summaries = [summary(name, "native", values) for name, values in (("one", HIGH), ("two", LOW))]
    (claim,) = claims(summaries)
    assert claim.verdict == "too few calibrations"
    summaries = [summary(name, "any", values) for name, values in (("one", HIGH), ("two", LOW))]
    (claim,) = claims(summaries)
    assert claim.verdict == "higher"  # no strength enters that metric


def test_differences_are_paired() -> None:
    """Seeds that differ more than the methods do hide nothing: each seed is compared with itself."""
    seeds = np.array([0.1, 0.5, 0.9, 0.3, 0.7])
    gains = np.array([0.02, 0.03, 0.025, 0.015, 0.01])
    assert both({"native": list(seeds + gains)}, {"native": list(seeds)}).verdict == "higher"


def test_the_same_number_again_is_no_evidence() -> None:
    """Two methods without any use for a seed differ by the same at each: one measurement, not five."""
    assert both({"native": [0.8] * 5}, {"native": [0.4] * 5}).verdict == "too few seeds"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "--generators",
        "painted:painter",
        "--methods",
        "axes",
        "random",
        "--metrics",
        MATRIX,
        "--reader",
        "painted:Regions",
    ]
    words += ["--calibrations", "native", "--k", "3", "--null", "3", "--out", str(tmp_path / "c")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "| axes | 3 |" in out
    assert (tmp_path / "c" / "results.jsonl").exists()
    assert main(["compare", "--methods", "sefaa", "--out", str(tmp_path / "d")]) == 2
    assert "Did you mean 'sefa'?" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


# --- kernel distances -------------------------------------------------------------------------------------------------


class Missing:
    """An extractor whose package is not there."""

    name = "missing"

    def __call__(self, images):
        raise UserError("the package none is not installed; pip install none")


class There:
    """One that is."""

    name = "there"

    def __call__(self, images):
        return images.flatten(2).mean(2)


def test_kernel_distances_are_a_calibration_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS.table, "efficientnet_lite0", f"{__name__}:Missing")
    asked = ["native", "kid_pixels", "kid_efficientnet"]
    grid = small(
        methods=["axes"], metrics=["edit_distance_v1(n=4)"], calibrations=asked, k=2, targets={"kid_pixels": 0.3}
    )
    told: list[str] = []
    comparison = Comparison(grid, tmp_path, log=told.append)
    comparison.run()
    lines = {line["cell"]["calibration"]: line for line in comparison.results.read()}
    assert lines["kid_pixels"]["status"] == "done"
    assert lines["kid_pixels"]["strengths"] != lines["native"]["strengths"]
    assert lines["kid_pixels"]["cell"]["target"] == 0.3
    assert lines["kid_efficientnet"]["status"] == "failed"
    assert "efficientnet_lite0 has to be installed" in lines["kid_efficientnet"]["reason"]
    assert "kid_efficientnet is left out: the package none is not installed; pip install none" in told
    monkeypatch.setitem(EXTRACTORS.table, "efficientnet_lite0", f"{__name__}:There")  # now it is
    again = Comparison(grid, tmp_path)
    again.run()
    latest = {line["cell"]["calibration"]: line["status"] for line in again.results.read()}
    assert latest == {"native": "done", "kid_pixels": "done", "kid_efficientnet": "done"}
    assert "kid_pixels" in tables(summarise(again))["painter", "edit_distance_v1(n=4)"][0]
