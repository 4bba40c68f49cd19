"""The benchmark of near duplicates counts what the search finds, and nothing that it does not."""

from __future__ import annotations

from benchmarks.quality_near_duplicates import COPIES, Clips, Piece, Scene, score


def test_copies_of_drawn_scenes_are_found_and_a_stranger_under_a_wrong_name_is_counted() -> None:
    scenes = [Scene.drawn(number, seed=1) for number in range(3)]
    originals = [Piece(f"scene {at}", frozenset({f"scene {at}"}), each.prints) for at, each in enumerate(scenes)]
    kinds = ("encoded again", "mirrored", "1.25 times as fast, pitch moved", "1.25 times as fast, pitch kept")
    copies = [(of, kind, scenes[of].copied(COPIES[kind]).prints) for of in (0, 1) for kind in kinds]
    found = score(Clips(originals, copies))
    for speeds, num in (("any_speed", 8), ("one_speed", 4), ("other_speeds", 4)):
        assert (found[f"all_at_{speeds}"]["tried"], found[f"all_at_{speeds}"]["share"]) == (num, 1.0)
    assert (found["distinct"], found["generated"], found["false_pairs"]) == (3, 3, 0)
    assert found["false_pairs_of"] == 11 * 10 // 2 - 2 * (5 * 4 // 2)
    misnamed = score(Clips(originals, [(2, kind, prints) for _, kind, prints in copies[:1]]))
    assert (misnamed["all_at_one_speed"]["share"], misnamed["false_pairs"]) == (0.0, 1)
    assert misnamed["false"] == [("scene 0", "scene 2")]
