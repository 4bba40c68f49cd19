"""Where sources come from, and how their bytes get here."""
