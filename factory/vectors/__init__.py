"""Vector stores: texts in chunks with their embeddings, and what is near a question.

stores = VectorStores(settings.vectors_url)
await stores.create("support", store)
await stores.put("support", store.store_id, file, texts, vectors)
found = await stores.search("support", store.store_id, vector, most=10)
"""

from factory.vectors.chunking import chunked
from factory.vectors.errors import UnknownStore, VectorsError
from factory.vectors.lance import VectorStores
from factory.vectors.store import Attributes, File, Found, Kept, Store, Update

__all__ = [
    "Attributes",
    "File",
    "Found",
    "Kept",
    "Store",
    "UnknownStore",
    "Update",
    "VectorStores",
    "VectorsError",
    "chunked",
]
