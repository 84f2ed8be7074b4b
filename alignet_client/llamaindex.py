"""AligNet as an image embedding of LlamaIndex. There is no text tower: text is refused."""

import asyncio
from typing import Any, NoReturn

from alignet_client.client import Client
from alignet_client.results import SpaceName
from alignet_client.retrieval.index import Space
from alignet_client.retrieval.photos import Embedder

try:
    from llama_index.core.base.embeddings.base import Embedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
except ImportError as error:
    raise ImportError("the adapter needs llama-index-core; run: pip install llama-index-core") from error


class AligNetEmbedding(MultiModalEmbedding):
    """Image embeddings, for the image store of a multi-modal index: `get_image_embedding`, one by one or in batches.

    Args:
        client: of a running service.
        space: `aligned` or `base`.
        normalize: scale vectors to length 1, a space of its own, for stores that compare by cosine only.
        more: fields of LlamaIndex, such as `embed_batch_size`.

    Raises:
        AligNetError: the service does not answer, or has no such space.
    """

    _embedder: Embedder = PrivateAttr()

    def __init__(self, client: Client, space: SpaceName = "aligned", *, normalize: bool = False, **more: Any) -> None:
        embedder = Embedder.of(client, space, normalize=normalize)
        super().__init__(**{"model_name": embedder.space.model, **more})
        self._embedder = embedder

    @property
    def space(self) -> Space:
        """Of the vectors; store its fingerprint with them."""
        return self._embedder.space

    def _get_image_embedding(self, img_file_path: Any) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[Any]) -> list[Embedding]:
        read = [one.read() if hasattr(one, "read") else one for one in img_file_paths]
        rows: list[Embedding] = self._embedder.embed(read).tolist()
        return rows

    async def _aget_image_embedding(self, img_file_path: Any) -> Embedding:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[Any]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    def _get_text_embedding(self, text: str) -> NoReturn:
        raise NotImplementedError(f"{text[:80]!r} is text: AligNet embeds images only")

    def _get_query_embedding(self, query: str) -> NoReturn:
        self._get_text_embedding(query)

    async def _aget_text_embedding(self, text: str) -> NoReturn:
        self._get_text_embedding(text)

    async def _aget_query_embedding(self, query: str) -> NoReturn:
        self._get_text_embedding(query)
