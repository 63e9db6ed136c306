"""Stand-ins for what packages install: manual pages in four languages, MNIST's files, an encoder with its tokenizer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

WORDS = {
    "de": "der Befehl liest die Datei und schreibt das Ergebnis auf die Standardausgabe wenn keine Option gesetzt ist",
    "fr": "la commande lit les lignes du fichier une fois des noms de le un",
    "es": "la orden lee el fichero y muestra el contenido en la salida normal cuando ninguna opción fue elegida",
    "pl": "polecenie czyta plik i wypisuje jego zawartość na wyjście chyba że podano inną opcję dla użytkownika",
}


@pytest.fixture(scope="session")
def man(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety pages of a language, of its words in random order; a French sentence has every article once."""
    root = tmp_path_factory.mktemp("man")
    for number, (language, words) in enumerate(WORDS.items()):
        random = np.random.default_rng(number)
        for page in range(90):
            section = (1, 5, 7, 8)[page % 4]
            lines = [" ".join(random.permutation(words.split())) + "." for _ in range(8)]
            source = f".TH PAGE {section}\n.SH NAME\npage{page} \\- {lines[0]}\n" + "\n.PP\n".join(lines[1:]) + "\n"
            folder = root / language / f"man{section}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"page{page}.{section}.gz").write_bytes(gzip.compress(source.encode()))
    return root


@pytest.fixture(scope="session")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images that a network can tell apart: a bright bar at the place of the label; images packed."""
    root = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = (np.arange(300) % 10).astype(np.uint8)
        images = random.integers(0, 100, (300, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 6, 4:20] = 255
        header = b"\0\0\x08\x03" + np.array([300, 28, 28], ">u4").tobytes()
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (root / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + bytes([0, 0, 1, 44]) + labels.tobytes())
    return root


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random encoder of BERT's kind, and a tokenizer for what the manual pages and Python say."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[PAD]", "[UNK]"])
    tokenizer.train_from_iterator([*WORDS.values(), Path(json.__file__).read_text()], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    size = tokenizer.get_vocab_size()
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder
