"""The adapters on the real libraries, which are skipped, visibly, where they are not installed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alignet_client import Client
from tests.toy import encoded, photo

pytestmark = pytest.mark.filterwarnings("ignore")  # these libraries warn at import, each version of other things


@pytest.fixture
def client(live: str) -> Iterator[Client]:
    with Client(live) as client:
        yield client


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for seed in range(4):
        (tmp_path / f"{seed}.png").write_bytes(encoded(photo(seed)))
    return [str(tmp_path / f"{seed}.png") for seed in range(4)]


def test_langchain(client: Client, paths: list[str]) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from langchain_core.vectorstores import InMemoryVectorStore

    from alignet_client.langchain import AligNetEmbeddings

    embeddings = AligNetEmbeddings(client, normalize=True)
    expected = client.embed(paths, normalize=True)
    np.testing.assert_array_equal(np.array(embeddings.embed_image(paths), np.float32), expected)
    store = InMemoryVectorStore(embeddings)  # compares by cosine
    store.add_texts(paths)
    found = store.similarity_search_with_score(paths[2], k=4)
    assert found[0][0].page_content == paths[2]
    ranked = [paths.index(document.page_content) for document, _ in found]
    assert ranked == np.argsort(-(expected @ expected[2])).tolist()
    with pytest.raises(ValueError, match="AligNet embeds images, not text"):
        store.similarity_search("a cat on a sofa")
    assert embeddings.space.fingerprint == client.model().spaces["aligned"].fingerprint_normalized


def test_llamaindex(client: Client, paths: list[str]) -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from alignet_client.llamaindex import AligNetEmbedding

    embedding = AligNetEmbedding(client, "base", embed_batch_size=3)
    expected = client.embed(paths, space="base")
    np.testing.assert_array_equal(np.array(embedding.get_image_embedding(paths[0]), np.float32), expected[0])
    np.testing.assert_array_equal(np.array(embedding.get_image_embedding_batch(paths), np.float32), expected)
    found = asyncio.run(embedding.aget_image_embedding(paths[1]))
    np.testing.assert_array_equal(np.array(found, np.float32), expected[1])
    assert embedding.space.fingerprint == client.model().spaces["base"].fingerprint
    for ask in (embedding.get_text_embedding, embedding.get_query_embedding):
        with pytest.raises(NotImplementedError, match="'a cat' is text"):
            ask("a cat")
