"""Sets in the forms in which they are published, and where samples are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.evaluate.sets import find_samples, read_set
from schemas.errors import RecipeError


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_seedtts(tmp_path: Path) -> None:
    line = "common_voice_en_1-2|We asked over twenty.|prompt-wavs/common_voice_en_1.wav|Get the trust fund to the bank early."
    path = write(tmp_path / "en" / "meta.lst", line + "\n\n" + line.replace("en_1-2", "en_3-4") + "|wavs/real.wav\n")
    found = read_set(path)
    assert (found.form, len(found.items)) == ("seedtts", 2)
    first, second = found.items
    assert (first.item_id, first.language) == ("common_voice_en_1-2", "en")
    assert first.text == "Get the trust fund to the bank early."
    assert first.voice == tmp_path / "en" / "prompt-wavs" / "common_voice_en_1.wav"
    assert (first.reference, second.reference) == (None, tmp_path / "en" / "wavs" / "real.wav")
    hard = write(tmp_path / "zh" / "hardcase.lst", "a.wav|提示|p.wav|要说的话")
    assert (read_set(hard).items[0].item_id, read_set(hard).items[0].language) == ("a", "zh")
    write(path, line + "\nonly|three|fields\n")
    with pytest.raises(RecipeError, match="line 2: 3 fields, expected 4 or 5"):
        read_set(path)


def test_versebench(tmp_path: Path) -> None:
    spoken = {"video_prompt": "A man talks.", "speech_prompt": {"text": " Good evening. "}, "audio_prompt": []}
    heard = {"video_prompt": "Waves.", "speech_prompt": {"text": ""}, "audio_prompt": ["Waves break", "gulls"]}
    write(tmp_path / "set3" / "00001.json", json.dumps(spoken))
    write(tmp_path / "set3" / "00001.jpg")
    write(tmp_path / "set2" / "7.json", json.dumps(heard))
    write(tmp_path / "set2" / "7.wav")
    waves, man = read_set(tmp_path).items
    assert (man.subset, man.text, man.sounds, man.first_frame) == (
        "set3",
        "Good evening.",
        (),
        tmp_path / "set3" / "00001.jpg",
    )
    assert (waves.text, waves.sounds, waves.reference) == (None, ("Waves break", "gulls"), tmp_path / "set2" / "7.wav")


def test_javisbench(tmp_path: Path) -> None:
    rows = [{"path": "clips/a.mp4", "text": "A dog barks.", "audio_text": "barking"}, {"id": 7, "prompt": "Rain."}]
    for path in (
        write(tmp_path / "list.json", json.dumps(rows)),
        write(tmp_path / "wrapped.json", json.dumps({"data": rows})),
    ):
        dog, rain = read_set(path).items
        assert (dog.item_id, dog.prompt, dog.sounds, dog.reference) == ("a", "A dog barks.", ("barking",), None)
        assert (rain.item_id, rain.prompt, rain.text) == ("7", "Rain.", None)
    assert len(read_set(write(tmp_path / "lines.jsonl", "\n".join(map(json.dumps, rows)))).items) == 2
    with pytest.raises(RecipeError, match="item 7 is there twice"):
        read_set(write(tmp_path / "twice.json", json.dumps([rows[1], rows[1]])))
    with pytest.raises(RecipeError, match=r"broken\.json is no JSON"):
        read_set(write(tmp_path / "broken.json", "[{"))


def test_manifest_and_folder(tmp_path: Path) -> None:
    truth = {"transcript": "Open the box.", "language": "en"}
    items = [
        {"path": "talking/late.mp4", "probe": {"streams": [1]}, "ground_truth": truth, "seen_and_heard": "a man"},
        {"path": "silent.mp4", "probe": {"streams": [1]}, "ground_truth": {}},
        {"path": "broken.mp4", "probe": {"streams": []}, "ground_truth": {}},
    ]
    write(tmp_path / "set" / "manifest.json", json.dumps({"items": items}))
    late, silent = read_set(tmp_path / "set").items
    assert (late.subset, late.item_id, late.text) == ("talking", "late", "Open the box.")
    assert (silent.text, silent.voice, silent.reference) == (None, None, tmp_path / "set" / "silent.mp4")
    with pytest.raises(RecipeError, match="has no items with a path"):
        read_set(write(tmp_path / "foreign" / "manifest.json", "[1]").parent)
    write(tmp_path / "plain" / "a.mp4")
    write(tmp_path / "plain" / "a.txt", "Hello.\n")
    write(tmp_path / "plain" / "b.wav")
    assert [(item.item_id, item.text) for item in read_set(tmp_path / "plain").items] == [("a", "Hello."), ("b", None)]
    with pytest.raises(RecipeError, match="holds no item"):
        read_set(write(tmp_path / "empty" / "x.md").parent)
    with pytest.raises(RecipeError, match="no evaluation set at"):
        read_set(tmp_path / "nowhere")


def test_samples_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path / "set" / "set1" / "1.json", "{}")
    for name in ("1", "2", "3"):
        write(tmp_path / "set" / "set3" / f"{name}.json", "{}")
    given = read_set(tmp_path / "set")
    made = tmp_path / "made"
    for name in ("set1/1.mp4", "set1/1.wav", "set3/1-av-0.mp4", "2.wav", "set3/notes.txt", "set1/3.mp4"):
        write(made / name)
    write(made / "set1" / "1.mkv")
    found, ambiguous = find_samples(given, made)
    told = {(item.subset, item.item_id): path.relative_to(made).as_posix() for item, path in found.items()}
    assert told == {("set1", "1"): "set1/1.mkv", ("set3", "1"): "set3/1-av-0.mp4", ("set3", "2"): "2.wav"}
    assert ambiguous == {"1": "1.mkv taken, 1.mp4, 1.wav not"}
    with pytest.raises(RecipeError, match="is no folder"):
        find_samples(given, tmp_path / "nothing")
