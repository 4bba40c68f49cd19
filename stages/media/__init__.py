"""Everything that opens, decodes, cuts or writes media, behind one door: `decoder.py`."""
