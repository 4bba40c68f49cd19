"""Which clips are the same to eye and ear, however they were cropped, mirrored, trimmed, sped up or encoded again."""
