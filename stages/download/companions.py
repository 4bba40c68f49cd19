"""What lies beside media and is none: subtitles, thumbnails, lists, leftovers; and folders that this program wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

SIDECARS = frozenset(
    {
        *(
            ".json",
            ".jsonl",
            ".ndjson",
            ".csv",
            ".tsv",
            ".parquet",
            ".arrow",
            ".feather",
            ".npy",
            ".npz",
            ".avro",
            ".orc",
        ),
        *(
            ".yaml",
            ".yml",
            ".toml",
            ".xml",
            ".ini",
            ".cfg",
            ".conf",
            ".db",
            ".sqlite",
            ".xls",
            ".xlsx",
            ".ods",
            ".lock",
        ),
        *(".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".nfo", ".log", ".rttm"),
        *(".srt", ".vtt", ".ass", ".ssa", ".lrc", ".sbv", ".ttml", ".dfxp", ".smi", ".scc", ".sub", ".idx", ".stl"),
        *(".srv1", ".srv2", ".srv3", ".json3", ".description", ".url", ".lnk", ".webloc", ".desktop"),
        *(
            ".ifo",
            ".bup",
            ".cpi",
            ".clpi",
            ".mpls",
            ".bdmv",
            ".thm",
            ".aae",
            ".xmp",
            ".bif",
            ".edl",
            ".otio",
            ".fcpxml",
        ),
        *(
            ".py",
            ".ipynb",
            ".sh",
            ".bat",
            ".exe",
            ".dll",
            ".so",
            ".safetensors",
            ".pt",
            ".pth",
            ".ckpt",
            ".onnx",
            ".distcp",
        ),
        *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".sha1", ".sha256", ".sha512", ".md5"),
        *(".sfv", ".par2", ".torrent", ".part", ".tmp", ".crdownload", ".download", ".aria2", ".ytdl", ".bak", ".swp"),
    }
)
"""Endings of files that lie beside media and are not sources themselves. Every other file of a folder is taken."""
PICTURES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".svg", ".ico", ".psd"}
)
"""Endings of still pictures: covers, thumbnails, photographs."""
PICTURES_THAT_MAY_MOVE = frozenset({".webp", ".gif", ".avif", ".apng", ".jxl"})
"""Thumbnails where they bear the name of a file beside them, sources elsewhere."""
EXPORT_MARK = ".nava-export"
"""Lies in folders of exported clips."""
RUN_LOG = "ledger/_delta_log"
EXPORT_FILES = ("data.jsonl", "data.list", "data.weight")

HIDDEN = "hidden files or folders"
BESIDE = "files beside media (subtitles, notes, lists, leftovers)"
THUMBNAILS = "still pictures"
OWN_FOLDERS = "folders that a run or an export wrote"


def why_no_medium(name: PurePath, stems: frozenset[str]) -> str | None:
    """Why a file of this name is no source; None for one that is. `stems` are those of media beside it."""
    ending = name.suffix.lower()
    if name.name.startswith("."):
        return HIDDEN
    if ending in SIDECARS or ending.startswith(".part-"):
        return BESIDE
    if ending in PICTURES or (ending in PICTURES_THAT_MAY_MOVE and name.stem in stems):
        return THUMBNAILS
    return None


def stems_of(names: Iterable[PurePath]) -> frozenset[str]:
    """Names of a folder that may be media, without their endings."""
    no_media = SIDECARS | PICTURES | PICTURES_THAT_MAY_MOVE
    return frozenset(name.stem for name in names if name.suffix.lower() not in no_media)


def is_own(folder: Path) -> bool:
    """Whether this program wrote a folder: a run, or clips exported from one, which would be their own near-duplicates."""
    return (
        (folder / EXPORT_MARK).exists()
        or (folder / RUN_LOG).exists()
        or all((folder / name).exists() for name in EXPORT_FILES)
    )


def own_roots(names: Iterable[str]) -> set[str]:
    """Folders among the objects of these names (`a/b/c.mp4`) that this program wrote; "" is the root."""
    known = set(names)
    roots = {name[: -len(EXPORT_MARK)] for name in known if PurePath(name).name == EXPORT_MARK}
    roots |= {name.partition(f"{RUN_LOG}/")[0] for name in known if f"/{RUN_LOG}/" in f"/{name}"}
    for name in known:
        root = name[: -len(EXPORT_FILES[0])]
        if name.endswith(EXPORT_FILES[0]) and all(root + other in known for other in EXPORT_FILES):
            roots.add(root)
    return {root.rstrip("/") for root in roots}
