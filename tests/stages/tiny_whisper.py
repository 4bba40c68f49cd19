"""Models of random weights in the formats whisperx reads: real loaders, nonsense words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CTranslate2 Whisper of random weights: real format, real loader, nonsense words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    folder = tmp_path_factory.mktemp("whisper")
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "", *(f"filler{i}" for i in range(99))]
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[:99])]
    specials += [
        f"<|{n}|>" for n in ("translate", "transcribe", "startoflm", "startofprev", "nocaptions", "notimestamps")
    ]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    end = tokenizer.token_to_id("<|endoftext|>")
    fast = WhisperTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=specials,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=tokenizer.get_vocab_size(), d_model=32, encoder_layers=1, decoder_layers=2, num_mel_bins=80,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=None, begin_suppress_tokens=None,
            decoder_start_token_id=tokenizer.token_to_id("<|startoftranscript|>"),
        )
    )  # fmt: skip
    with torch.no_grad():
        letters = model.model.decoder.embed_tokens.weight[: len(symbols) - 100]
        model.model.decoder.layer_norm.bias += 4000 * letters[symbols.index("o")]
    model.generation_config.update(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    for part in (model, fast, WhisperFeatureExtractor(feature_size=80)):
        part.save_pretrained(folder / "hf")
    from ctranslate2.converters import TransformersConverter

    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(folder / "hf"), copy_files=copied).convert(str(folder / "ct2"), quantization="int8")
    return folder / "ct2"


@pytest.fixture(scope="module")
def tiny_aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 CTC model of one random layer over the upper-case alphabet."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("aligner")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=False)
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, pad_token_id=0,
        )
    )  # fmt: skip
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
