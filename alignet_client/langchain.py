"""AligNet as an embedding of LangChain. There is no text tower: what is embedded are images, by path or URL."""

from collections.abc import Sequence
from pathlib import Path

from alignet_client.client import Client
from alignet_client.images import Image
from alignet_client.results import SpaceName
from alignet_client.retrieval.photos import Embedder

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ImportError("the adapter needs langchain-core; run: pip install langchain-core") from error


class AligNetEmbeddings(Embeddings):
    """Image embeddings for any LangChain vector store.

    `embed_image` is what stores with `add_images` and `similarity_search_by_image` call, as of OpenCLIPEmbeddings.
    In `embed_documents` and `embed_query` each text must be the path or the URL of an image, so stores that know only
    documents work with `page_content` as the path. Choose the store's dot product where `space.similarity` is `dot`.

    Args:
        client: of a running service.
        space: `aligned` or `base`.
        normalize: scale vectors to length 1, a space of its own, for stores that compare by cosine only.

    Raises:
        AligNetError: the service does not answer, or has no such space.
    """

    def __init__(self, client: Client, space: SpaceName = "aligned", *, normalize: bool = False) -> None:
        self._embedder = Embedder.of(client, space, normalize=normalize)
        self.space = self._embedder.space

    def embed_image(self, uris: Sequence[Image]) -> list[list[float]]:
        """Vectors of images, in order. Raises as `Client.embed`."""
        rows: list[list[float]] = self._embedder.embed(uris).tolist()
        return rows

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of the images that the texts are paths or URLs of. Raises ValueError for any other text."""
        return self.embed_image([image_named(text) for text in texts])

    def embed_query(self, text: str) -> list[float]:
        """Vector of the image that the text is the path or URL of. Raises ValueError for any other text."""
        return self.embed_documents([text])[0]


def image_named(text: str) -> str:
    """`text`, if it can be the path or URL of an image. Raises ValueError."""
    if not text.lower().startswith(("http://", "https://")) and ("\n" in text or not Path(text).is_file()):
        raise ValueError(
            f"{text[:80]!r} is no file: AligNet embeds images, not text; give the path or the URL of an image"
        )
    return text
