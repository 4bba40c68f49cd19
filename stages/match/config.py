"""Settings of stage `match`: where the networks lie that it may ask."""

from __future__ import annotations

from stages.base import StageConfig


class MatchConfig(StageConfig):
    """Which published networks are asked beside the own evidence; those without a path are not."""

    imagebind_path: str = ""
    """imagebind_huge.pth (CC-BY-NC 4.0), or the same names in safetensors; 4.8 GB of memory."""
    synchformer_path: str = ""
    """synchformer_state_dict.pth, tensors alone, or the same names in safetensors; 1 GB of memory."""
    clap_path: str = ""
    """Folder of CLAP as transformers saves it (laion/clap-htsat-fused); 0.7 GB of memory."""
    device: str = "cpu"
    """Where they run: cpu, cuda, cuda:1. State what a worker then needs in `resources.match`."""
