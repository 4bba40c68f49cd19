"""Kept clips in the forms other programs read: what `nava-curate export` writes."""

from pipeline.export.nava import Exported, export_nava, nava_record

__all__ = ["Exported", "export_nava", "nava_record"]
