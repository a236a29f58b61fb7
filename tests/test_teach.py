"""A planted wish is learnt from a few clicks; children take after their parents."""

from __future__ import annotations

import math

import pytest
import torch

from eigenlens import UserError, teach
from eigenlens.codes import Space, concatenate, cross
from eigenlens.generator import Generator
from toys import Toy, linear_toy, orthonormal_rows


def planted(dim: int = 24, visible: int = 3) -> tuple[Toy, torch.Tensor]:
    """Make a generator that shows `visible` of its coordinates, and the first one's direction."""
    rows = orthonormal_rows(dim, dim, seed=1)[:visible]
    matrix = torch.zeros(12, dim, dtype=torch.float64)
    matrix[:4], matrix[4:8], matrix[8:] = rows[0], rows[1], rows[2]
    return linear_toy(matrix, (3, 2, 2)), rows[0].float()


def judged(generator: Generator, wish: torch.Tensor, n: int) -> tuple[teach.Visible, list[float], torch.Tensor]:
    codes = generator.sample(n, seed=5)
    return teach.Visible.measure(generator), torch.sign(codes.latent[:, 0] @ wish).tolist(), codes


def test_a_dozen_clicks_find_what_was_meant_where_plain_ridge_does_not() -> None:
    generator, wish = planted()
    visible, votes, codes = judged(generator, wish, 12)
    found = teach.as_directions(visible, teach.learn(visible, codes, votes))
    cosine = float(found.vectors[0, 0] @ wish)
    rows = codes.latent[:, 0]
    plain = rows.T @ torch.linalg.solve(rows @ rows.T + len(rows) * torch.eye(len(rows)), torch.tensor(votes))
    assert cosine > 0.85
    assert cosine > float(torch.nn.functional.cosine_similarity(plain, wish, dim=0)) + 0.1
    assert found.sigma.tolist() == pytest.approx([1.0])


def test_votes_turned_round_turn_the_direction_round() -> None:
    generator, wish = planted()
    visible, votes, codes = judged(generator, wish, 8)
    one = teach.learn(visible, codes, votes)
    other = teach.learn(visible, codes, [-vote for vote in votes])
    assert torch.allclose(one.normal, -other.normal)
    assert one.left_out == other.left_out


def test_the_left_out_share_is_that_of_refitting() -> None:
    generator, wish = planted()
    visible, votes, codes = judged(generator, wish, 9)
    votes[0] = -votes[0]
    lesson = teach.learn(visible, codes, votes)
    # the closed form leaves one click out at fixed noise and centre
    rows = codes.latent[:, 0].double() - visible.mean
    gram = rows @ visible.prior @ rows.T
    gram += teach.NOISE * gram.diagonal().mean() * torch.eye(9, dtype=gram.dtype)
    wanted = torch.tensor(votes, dtype=torch.float64)
    plain = gram - teach.NOISE * (rows @ visible.prior @ rows.T).diagonal().mean() * torch.eye(9, dtype=gram.dtype)
    right = 0
    for i in range(9):
        rest = [k for k in range(9) if k != i]
        predicted = plain[i, rest] @ torch.linalg.solve(gram[rest][:, rest], wanted[rest])
        right += bool(predicted * wanted[i] > 0)
    assert lesson.left_out == pytest.approx(right / 9)


def test_the_next_question_is_the_one_on_the_fence() -> None:
    generator, wish = planted()
    visible, votes, codes = judged(generator, wish, 10)
    base = generator.sample(1, seed=9)
    base = base.with_latent(base.latent * 0)
    candidates = concatenate([base.with_latent(base.latent + k * wish[None, None]) for k in (3.0, 0.05, -2.0)])
    lesson = teach.learn(visible, codes, votes, candidates=candidates)
    assert lesson.most_telling() == 1
    assert lesson.most_telling([1]) != 1
    assert lesson.most_telling([0, 1, 2]) is None
    assert lesson.mean[0] > 0 > lesson.mean[2]


def test_one_click_asks_and_teaches_little() -> None:
    generator, wish = planted()
    visible, votes, codes = judged(generator, wish, 2)
    lesson = teach.learn(visible, codes[0], votes[:1], candidates=codes)
    assert math.isnan(lesson.left_out)
    other = teach.learn(visible, codes[1], votes[1:], candidates=codes)
    assert lesson.deviation[0] < other.deviation[0]  # a picture that was judged is surer than before
    with pytest.raises(UserError, match="1 votes came for 2 codes"):
        teach.learn(visible, codes, votes[:1])


@pytest.mark.parametrize("family", ["stylegan2", "biggan", "eigengan"])
def test_families_with_other_spaces(family: str, tiny) -> None:
    generator = tiny(family)
    label = 0 if generator.label_names else None
    codes = generator.sample(6, label=label)
    visible = teach.Visible.measure(generator, n=24)
    lesson = teach.learn(visible, codes, [1, 1, 1, -1, -1, -1])
    found = teach.as_directions(visible, lesson, name="wish", about={"more": [1]})
    moved = found.move(found.host(generator, codes), "wish", by=1.0)
    assert not torch.equal(generator(moved), generator(codes))
    again = teach.as_directions(visible, teach.learn(visible, codes, [1, 1, 1, -1, -1, -1]))
    assert torch.equal(again.vectors, found.vectors)
    assert found.provenance.method == "taught"
    assert found.provenance.arguments["more"] == [1]


# --- children ---------------------------------------------------------------------------------------------------------


def test_children_take_each_coordinate_from_a_parent(eigengan: Generator) -> None:
    a, b, fresh = eigengan.sample(1, seed=1), eigengan.sample(1, seed=2), eigengan.sample(64, seed=3)
    children = cross(a, b, fresh, seed=4, mutation=0.0).latent
    from_a, from_b = children == a.latent, children == b.latent
    assert bool((from_a | from_b).all())
    assert 0.3 < float(from_a.float().mean()) < 0.7
    assert not torch.equal(children[0], children[1])
    assert torch.equal(cross(a, b, fresh[:8], seed=4, mutation=0.0).latent, children[:8])
    assert torch.equal(cross(a, b, fresh, mutation=1.0).latent, fresh.latent)


def test_children_keep_the_law_of_the_space() -> None:
    space = Space("z", 1, 400)
    generator = Toy(lambda latent: latent[..., None, :2].expand(-1, 3, 2, 2), space)
    a, b = generator.sample(1, seed=1), generator.sample(1, seed=2)
    children = cross(a, b, generator.sample(200, seed=3), mutation=0.5).latent
    assert float(children.var()) == pytest.approx(1.0, abs=0.06)


def test_styles_of_a_slot_stay_together(tiny) -> None:
    generator = tiny("stylegan2")
    wide = next(space.name for space in generator.spaces.values() if space.slots > 1 and space.broadcast_of)
    draw = lambda n, seed: generator.sample(n, seed=seed, space=wide, label=0)  # noqa: E731
    a, b = draw(1, 1), draw(1, 2)
    children = cross(a, b, draw(16, 3), mutation=0.0)
    slots = children.space.slots
    for child in children.latent:
        for slot in range(slots):
            assert torch.equal(child[slot], a.latent.expand(-1, slots, -1)[0, slot]) or torch.equal(
                child[slot], b.latent.expand(-1, slots, -1)[0, slot]
            )


def test_parents_that_do_not_meet(eigengan: Generator, tiny) -> None:
    a = eigengan.sample(2)
    with pytest.raises(UserError, match="give one code each"):
        cross(a, a[0], a)
    with pytest.raises(UserError, match="between 0 and 1"):
        cross(a[0], a[1], a, mutation=2)
    other = tiny("stylegan2")
    with pytest.raises(UserError, match="lift them to one"):
        cross(a[0], other.sample(1, label=0, space="w"), a)
