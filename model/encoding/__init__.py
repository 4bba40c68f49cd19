"""From clips to latents."""
