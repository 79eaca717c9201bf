"""Qwen3 embeddings on a tiny random Qwen3 of the same architecture, saved and loaded as the real one is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genevolve.experience.embed import EmbedderError
from genevolve.experience.embed_qwen3 import END, Qwen3Embedder
from genevolve.profiles import load

TEXTS = ["Draw a cat.", "Draw two dogs on the left, with the sign OPEN.", "Draw a cat with a hat on a mat. " * 8, ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from genevolve.training.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("embedder")
    tokenizer = train_tokenizer(TEXTS * 4, 600)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    return folder


def test_a_text_is_the_last_tokens_state_whatever_its_company(model: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    together = Qwen3Embedder(str(model)).embed(TEXTS)
    assert together.shape == (4, 32)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    for text, row in zip(TEXTS, together, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids(END)]
        with torch.inference_mode():
            last = network(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
        assert np.allclose(row, last / np.linalg.norm(last), atol=1e-5)
        assert np.allclose(Qwen3Embedder(str(model)).embed([text])[0], row, atol=1e-5), "padding changes nothing"
    assert Qwen3Embedder(str(model)).embed([]).shape == (0, 32)


def test_an_end_that_the_tokenizer_puts_itself_is_not_put_twice(model: Path, tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    embedder = Qwen3Embedder(str(model))
    before = embedder.embed(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(model)
    end = tokenizer.convert_tokens_to_ids(END)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    embedder._tokenizer = tokenizer
    assert embedder._ids("Draw a cat.").count(end) == 1
    embedder._cache.clear()
    assert np.allclose(embedder.embed(TEXTS), before, atol=1e-6)


def test_the_memory_of_the_profile_takes_the_whole_question_and_the_papers_gate(model: Path, project: Path) -> None:
    from genevolve.stages.experience import new_memory

    over = ["experience.embedder=qwen3", f"experience.embedder_model={model}"]
    memory = new_memory(load("tiny", overrides=over, path=project / "params.yaml"))
    assert (memory.key, memory.gate, memory.embedder.name) == ("question", 0.84, "Qwen3-Embedding")
    assert memory.embedder.embed(["Draw a cat."]).shape == (1, 32)
    paper = load("paper", path=project / "params.yaml").experience
    assert (paper.embedder, paper.gate, paper.embedder_model) == ("qwen3", 0.84, "Qwen/Qwen3-Embedding-0.6B")


def test_a_model_that_is_not_there_or_is_another_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match=r"experience\.embedder_model"):
        Qwen3Embedder(str(tmp_path / "none")).embed(["x"])
    with pytest.raises(EmbedderError, match=r"Qwen/Qwen3-Embedding-0\.6B"):
        Qwen3Embedder("Qwen/Qwen3-Embedding-0.6B").embed(["x"])
