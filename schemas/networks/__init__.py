"""Published networks that both halves ask: functions of tensors in local files, arrays in, vectors out. No media, no recipes."""
